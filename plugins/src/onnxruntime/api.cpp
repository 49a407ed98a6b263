// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/api.h"

#include <memory>

namespace vitprune {
namespace {

// Whether a reader found the attribute. Its status is dropped: absence is not an error.
bool found(const OrtApi& api, OrtStatus* status) {
    api.ReleaseStatus(status);
    return status == nullptr;
}

bool find_integer(const OrtApi& api, const OrtKernelInfo* info, const char* name, int64_t& value) {
    return found(api, api.KernelInfoGetAttribute_int64(info, name, &value));
}

bool find_float(const OrtApi& api, const OrtKernelInfo* info, const char* name, float& value) {
    return found(api, api.KernelInfoGetAttribute_float(info, name, &value));
}

bool find_text(const OrtApi& api, const OrtKernelInfo* info, const char* name, std::string& value) {
    size_t size = 0;
    if (!found(api, api.KernelInfoGetAttribute_string(info, name, nullptr, &size))) return false;
    std::string text(size, '\0');
    check(api.KernelInfoGetAttribute_string(info, name, text.data(), &size));
    value = text.c_str();
    return true;
}

// An attribute that cannot be read as its own type must not be there as another one either.
[[noreturn]] void wrong_type(const OrtApi& api, const char* name) {
    fail(api, ORT_INVALID_ARGUMENT, std::string("attribute '") + name + "' has a wrong type");
}

void read_integer(const OrtApi& api, const OrtKernelInfo* info, const char* name, int64_t& value) {
    float other_float;
    std::string other_text;
    if (find_integer(api, info, name, value)) return;
    if (find_float(api, info, name, other_float) || find_text(api, info, name, other_text)) wrong_type(api, name);
}

void read_float(const OrtApi& api, const OrtKernelInfo* info, const char* name, float& value) {
    int64_t other_integer;
    std::string other_text;
    if (find_float(api, info, name, value)) return;
    if (find_integer(api, info, name, other_integer) || find_text(api, info, name, other_text)) wrong_type(api, name);
}

}  // namespace

void fail(const OrtApi& api, OrtErrorCode code, const std::string& message) {
    throw OrtFailure{api.CreateStatus(code, ("vitprune: " + message).c_str())};
}

void check_own(const OrtApi& api, int32_t status) {
    if (status != VP_OK) fail(api, ORT_INVALID_ARGUMENT, vp_status_string(status));
}

TensorView input_tensor(const OrtApi& api, OrtKernelContext* context, size_t index) {
    const OrtValue* value = nullptr;
    check(api.KernelContext_GetInput(context, index, &value));
    void* data = nullptr;
    check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));  // there is no accessor for constant tensors
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.GetTensorTypeAndShape(value, &info));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> owner(
        info, api.ReleaseTensorTypeAndShapeInfo);
    TensorView view{data, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}};
    size_t rank = 0;
    check(api.GetTensorElementType(info, &view.type));
    check(api.GetDimensionsCount(info, &rank));
    view.dims.resize(rank);
    check(api.GetDimensions(info, view.dims.data(), rank));
    return view;
}

Inputs::Inputs(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {
    check(api.KernelContext_GetInputCount(context, &count_));
}

bool Inputs::has(size_t index) const {
    const OrtValue* value = nullptr;
    if (index < count_) check(api_.KernelContext_GetInput(context_, index, &value));
    return value != nullptr;
}

std::vector<int64_t> Inputs::dims(size_t index) const {
    return has(index) ? input_tensor(api_, context_, index).dims : std::vector<int64_t>{};
}

const void* Inputs::data(size_t index, const std::vector<int64_t>& shape, const char* what) const {
    if (!has(index)) return nullptr;
    const TensorView view = input_tensor(api_, context_, index);
    if (view.dims != shape) fail(api_, ORT_INVALID_ARGUMENT, std::string(what) + " has a wrong shape");
    return view.data;
}

Typed Inputs::typed(size_t index, const std::vector<int64_t>& shape, const char* what) const {
    const void* values = data(index, shape, what);
    return values == nullptr ? Typed() : Typed(values, dtype_of(api_, input_tensor(api_, context_, index).type));
}

int32_t dtype_of(const OrtApi& api, ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return VP_FLOAT32;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return VP_FLOAT16;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return VP_BFLOAT16;
        default: check_own(api, VP_UNKNOWN_DTYPE); return -1;
    }
}

void* output_tensor(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims) {
    size_t count = 0;
    check(api.KernelContext_GetOutputCount(context, &count));
    OrtValue* value = nullptr;
    if (index < count) check(api.KernelContext_GetOutput(context, index, dims.data(), dims.size(), &value));
    void* data = nullptr;
    if (value != nullptr) check(api.GetTensorMutableData(value, &data));
    return data;
}

int64_t integer_of(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    int64_t value = 0;
    check(api.KernelInfoGetAttribute_int64(info, name, &value));
    return value;
}

float number_of(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    float value = 0.0f;
    check(api.KernelInfoGetAttribute_float(info, name, &value));
    return value;
}

std::string text_of(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    size_t size = 0;
    check(api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
    std::string value(size, '\0');
    check(api.KernelInfoGetAttribute_string(info, name, value.data(), &size));
    return value.c_str();
}

void read_attributes(const OrtApi& api, const OrtKernelInfo* info, bool fused, SampleParameters& sample, ScoreParameters& score) {
    std::string mode;
    std::string form = "paper";
    int64_t padded = 0;
    VpTokenSampleAttributes attributes{nullptr, 1, 0.0f, 0, 0, 0};
    VpTokenScoreAttributes score_attributes{nullptr, 0.0f, 1};
    if (!find_text(api, info, "mode", mode)) fail(api, ORT_INVALID_ARGUMENT, "attribute 'mode' is missing or no string");
    read_integer(api, info, "num_samples", attributes.num_samples);
    read_float(api, info, "threshold", attributes.threshold);
    read_integer(api, info, "capacity", attributes.capacity);
    read_integer(api, info, "expected", attributes.expected);
    read_integer(api, info, "pad_to_capacity", padded);
    attributes.mode = mode.c_str();
    attributes.pad_to_capacity = padded != 0;
    check_own(api, check_sample(&attributes, sample));
    if (!fused) return;
    find_text(api, info, "score_form", form);
    read_float(api, info, "scale", score_attributes.scale);
    read_integer(api, info, "prefix_tokens", score_attributes.prefix_tokens);
    score_attributes.form = form.c_str();
    check_own(api, check_score(&score_attributes, score));
}

}  // namespace vitprune
