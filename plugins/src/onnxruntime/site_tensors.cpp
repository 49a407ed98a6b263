// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

enum Input { kX, kValid, kQuery, kKey, kValue, kScore, kH, kPatch, kTheta, kInputCount };
enum Output { kRows, kRows2, kIndex, kKeep, kPatchOut, kKept, kMask, kScoreKept, kShape, kScoreOut, kOutputCount };

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ONNXTensorElementDataType kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr ONNXTensorElementDataType kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kBool, kFloat, kFloat, kFloat, kFloat, kFloat, kInt64, kFloat};
constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kInt64, kBool, kInt64, kInt64, kInt32, kFloat, kInt64, kFloat};

using Dims = std::vector<int64_t>;

std::string text(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    size_t size = 0;
    check(api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
    std::string value(size, '\0');
    check(api.KernelInfoGetAttribute_string(info, name, value.data(), &size));
    return value.c_str();
}

int64_t integer(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    int64_t value = 0;
    check(api.KernelInfoGetAttribute_int64(info, name, &value));
    return value;
}

class Reader {
public:
    Reader(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {
        check(api.KernelContext_GetInputCount(context, &count_));
    }

    bool has(size_t index) const {
        const OrtValue* value = nullptr;
        if (index < count_) check(api_.KernelContext_GetInput(context_, index, &value));
        return value != nullptr;
    }

    // Data of an input of this shape, null where it is absent.
    const void* take(size_t index, const Dims& dims, const char* what) const {
        if (!has(index)) return nullptr;
        const TensorView view = input_tensor(api_, context_, index);
        if (view.dims != dims) fail(api_, ORT_INVALID_ARGUMENT, std::string(what) + " has a wrong shape");
        return view.data;
    }

    Dims dims(size_t index) const { return has(index) ? input_tensor(api_, context_, index).dims : Dims{}; }

private:
    const OrtApi& api_;
    OrtKernelContext* context_;
    size_t count_ = 0;
};

// An output, null where the node has none.
template <typename Value>
Value* give(const OrtApi& api, OrtKernelContext* context, size_t index, const Dims& dims) {
    size_t count = 0;
    check(api.KernelContext_GetOutputCount(context, &count));
    OrtValue* value = nullptr;
    if (index < count) check(api.KernelContext_GetOutput(context, index, dims.data(), dims.size(), &value));
    void* data = nullptr;
    if (value != nullptr) check(api.GetTensorMutableData(value, &data));
    return static_cast<Value*>(data);
}

}  // namespace

void describe_site(OrtCustomOp& op) {
    op.GetName = [](const OrtCustomOp*) { return "PruneSite"; };
    op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputCount; };
    op.GetInputType = [](const OrtCustomOp*, size_t index) { return kInputs[index]; };
    op.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
        return index == kX ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return kOutputCount; };
    op.GetOutputType = [](const OrtCustomOp*, size_t index) { return kOutputs[index]; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) {
        return index == kRows ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
}

SiteParameters read_site(const OrtApi& api, const OrtKernelInfo* info) {
    SampleParameters sample;
    ScoreParameters unused;
    read_attributes(api, info, false, sample, unused);
    const std::string form = text(api, info, "form"), combine = text(api, info, "combine");
    VpPruneSiteAttributes attributes{};
    attributes.sample = {mode_name(sample.mode), sample.samples, sample.threshold, sample.capacity, sample.expected, sample.padded};
    attributes.form = form.c_str();
    attributes.combine = combine.c_str();
    attributes.heads = integer(api, info, "heads");
    attributes.prefix_tokens = integer(api, info, "prefix_tokens");
    attributes.originals = integer(api, info, "originals");
    SiteParameters parameters;
    check_own(api, check_site(&attributes, parameters));
    return parameters;
}

SiteTensors::SiteTensors(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters) {
    const Reader reader(api, context);
    const Dims x = reader.dims(kX);
    if (x.size() != 3 || x[1] <= parameters.prefix) fail(api, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
    const Dims second = reader.dims(kH), key = reader.dims(kKey);
    const int64_t batch = x[0], patches = x[1] - parameters.prefix;
    const int64_t width2 = second.size() == 3 ? second[2] : 0, row = key.size() == 3 ? key[2] : 0;
    if (row % parameters.heads != 0) fail(api, ORT_INVALID_ARGUMENT, "heads must divide the width of the keys");
    check_own(api, check_site_shape(parameters, {batch, patches, x[2], width2, row / parameters.heads}, shape));
    const Dims images{batch, patches}, rows{batch, x[1], row};
    Dims query{batch, row};
    if (reader.dims(kQuery).size() == 3) query = {batch, 1, row};
    in.x = static_cast<const float*>(reader.take(kX, x, "x"));
    in.h = static_cast<const float*>(reader.take(kH, {batch, x[1], width2}, "h"));
    in.query = static_cast<const float*>(reader.take(kQuery, query, "query"));
    in.key = static_cast<const float*>(reader.take(kKey, rows, "key"));
    in.value = static_cast<const float*>(reader.take(kValue, rows, "value"));
    in.score = static_cast<const float*>(reader.take(kScore, images, "score"));
    in.theta = static_cast<const float*>(reader.take(kTheta, {}, "theta"));
    in.valid = static_cast<const uint8_t*>(reader.take(kValid, images, "valid"));
    in.patch = static_cast<const int64_t*>(reader.take(kPatch, images, "patch"));
    check_own(api, check_site_inputs(parameters, in));
}

SiteOutputs site_outputs(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters, const SiteShape& shape,
                         int64_t count, float*& score) {
    const int64_t batch = shape.batch, rows = shape.prefix + count, more = parameters.combine != Combine::kNothing;
    SiteOutputs out{};
    out.count = count;
    out.rows = give<float>(api, context, kRows, {batch, rows + more, shape.width});
    if (shape.width2 > 0) out.rows2 = give<float>(api, context, kRows2, {batch * rows, shape.width2});
    out.index = give<int64_t>(api, context, kIndex, {batch, count});
    out.keep = give<uint8_t>(api, context, kKeep, {batch, count});
    out.patch = give<int64_t>(api, context, kPatchOut, {batch, count + more});
    out.kept = give<int64_t>(api, context, kKept, {batch, count});
    out.mask = give<int32_t>(api, context, kMask, {batch, rows + more});
    out.score_kept = give<float>(api, context, kScoreKept, {batch, count});
    if (int64_t* dims = give<int64_t>(api, context, kShape, {3})) dims[0] = batch, dims[1] = rows + more, dims[2] = shape.width;
    score = give<float>(api, context, kScoreOut, {batch, shape.patches});
    return out;
}

}  // namespace vitprune
