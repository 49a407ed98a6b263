// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/packed_operator.h"

#include "host/packed_attention.h"
#include "onnxruntime/pool.h"

namespace vitprune {
namespace {

struct PackedKernel {
    const OrtApi& api;
    int64_t heads = 0;
    float scale = 0.0f;
};

struct PackedOperator : OrtCustomOp {
    PackedOperator();
};

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kInt64, kInt64, kFloat};
constexpr size_t kBias = 5;

OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] {
        PackedKernel made{*api};
        check(api->KernelInfoGetAttribute_int64(info, "num_heads", &made.heads));
        check(api->KernelInfoGetAttribute_float(info, "scale", &made.scale));
        if (check_packed(1, made.heads, 1, made.scale) != VP_OK) {
            fail(*api, ORT_INVALID_ARGUMENT, "num_heads and scale must be positive");
        }
        *kernel = new PackedKernel(made);
    });
}

const float* bias_of(const OrtApi& api, OrtKernelContext* context, int64_t keys) {
    size_t count = 0;
    check(api.KernelContext_GetInputCount(context, &count));
    const OrtValue* value = nullptr;
    if (count > kBias) check(api.KernelContext_GetInput(context, kBias, &value));
    if (value == nullptr) return nullptr;
    const TensorView view = input_tensor(api, context, kBias);
    if (view.dims != std::vector<int64_t>{keys}) fail(api, ORT_INVALID_ARGUMENT, "bias must have one value per key");
    return static_cast<const float*>(view.data);
}

void compute(const PackedKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    TensorView in[kBias];
    for (size_t index = 0; index < kBias; ++index) in[index] = input_tensor(api, context, index);
    const auto& [query, key, value, query_ends, key_ends] = in;
    const bool flat = query.dims.size() == 2 && key.dims.size() == 2 && value.dims == key.dims && query.dims[1] == key.dims[1];
    if (!flat || query.dims[1] % kernel.heads != 0) {
        fail(api, ORT_INVALID_ARGUMENT, "query, key and value must be rows of one width that the heads divide");
    }
    if (query_ends.dims.size() != 1 || query_ends.dims[0] < 1 || key_ends.dims != query_ends.dims) {
        fail(api, ORT_INVALID_ARGUMENT, "query_ends and key_ends must both be [images + 1]");
    }
    const int64_t images = query_ends.dims[0] - 1;
    const PackedAttention all{
        static_cast<const float*>(query.data), static_cast<const float*>(key.data), static_cast<const float*>(value.data),
        bias_of(api, context, key.dims[0]), static_cast<const int64_t*>(query_ends.data),
        static_cast<const int64_t*>(key_ends.data), images, kernel.heads, query.dims[1] / kernel.heads, kernel.scale,
        static_cast<float*>(output_tensor(api, context, 0, query.dims))};
    if (!valid_ends(all.query_ends, images, query.dims[0]) || !valid_ends(all.key_ends, images, key.dims[0])) {
        fail(api, ORT_INVALID_ARGUMENT, "query_ends and key_ends must rise from 0 to the number of rows");
    }
    pool_of(context)(static_cast<size_t>(images * kernel.heads), [&all](size_t unit) {
        attend_packed(all, static_cast<int64_t>(unit));
    });
}

OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
    const PackedKernel& made = *static_cast<const PackedKernel*>(kernel);
    return guarded(made.api, [&] { compute(made, context); });
}

PackedOperator::PackedOperator() : OrtCustomOp{} {
    version = kOrtApi;
    GetName = [](const OrtCustomOp*) { return "PackedAttention"; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kBias + 1; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return kInputs[index]; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
        return index < kBias ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute_kernel;
    KernelDestroy = [](void* kernel) { delete static_cast<PackedKernel*>(kernel); };
}

}  // namespace

void add_packed_operator(const OrtApi& api, OrtCustomOpDomain* domain) {
    static const PackedOperator packed;  // lives as long as the process: sessions refer to it
    check(api.CustomOpDomain_Add(domain, &packed));
}

}  // namespace vitprune
