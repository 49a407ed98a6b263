// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/operators.h"

#include "build_info.h"
#include "host/token_sample.h"
#include "host/token_score.h"
#include "onnxruntime/column_operator.h"
#include "onnxruntime/cuda_merge_operators.h"
#include "onnxruntime/cuda_site_operator.h"
#include "onnxruntime/halt_operator.h"
#include "onnxruntime/merge_operators.h"
#include "onnxruntime/packed_operator.h"
#include "onnxruntime/pool.h"
#include "onnxruntime/predictor_operator.h"
#include "onnxruntime/site_operator.h"

namespace vitprune {
namespace {

constexpr ONNXTensorElementDataType kOutputTypes[] = {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

// A kernel together with what runs it: one per node of a session.
struct Instance {
    OperatorKernel kernel;
    ComputeFunction compute;
};

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] {
        OperatorKernel made{*api, {}, {}};
        read_attributes(*api, info, self(op).fused, made.sample, made.score);
        *kernel = new Instance{made, self(op).compute};
    });
}

OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
    const Instance& instance = *static_cast<const Instance*>(kernel);
    return guarded(instance.kernel.api, [&] { instance.compute(instance.kernel, context); });
}

void write_selection(const OrtApi& api, OrtKernelContext* context, const Selection& selection) {
    const std::vector<int64_t> dims{static_cast<int64_t>(selection.rows.size()), selection.count};
    int64_t* index = static_cast<int64_t*>(output_tensor(api, context, 0, dims));
    emit_tokens(selection, index, static_cast<uint8_t*>(output_tensor(api, context, 1, dims)));
    *static_cast<int64_t*>(output_tensor(api, context, 2, {})) = selection.count;
}

void compute_sample(const OperatorKernel& kernel, OrtKernelContext* context) {
    const SampleInputs in = sample_inputs(kernel.api, context);
    write_selection(kernel.api, context, select_tokens(kernel.sample, in.score, in.valid, in.batch, in.patches));
}

void compute_score_sample(const OperatorKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const TensorView query = input_tensor(api, context, 0);
    const TensorView key = input_tensor(api, context, 1);
    const TensorView value = input_tensor(api, context, 2);
    const TensorView valid = input_tensor(api, context, 3);
    const bool ranks = query.dims.size() == 3 && key.dims.size() == 4 && valid.dims.size() == 2;
    if (!ranks) fail(api, ORT_INVALID_ARGUMENT, "expected query [B,H,D], key [B,H,N,D], value [B,H,N,D], valid [B,P]");
    const int64_t keys = kernel.score.prefix + valid.dims[1];
    const std::vector<int64_t> full{valid.dims[0], key.dims[1], keys, key.dims[3]};
    const bool agree = key.dims == full && value.dims == full && query.dims == std::vector<int64_t>{full[0], full[1], full[3]};
    if (!agree) fail(api, ORT_INVALID_ARGUMENT, "query, key, value and valid disagree about B, H, N or D");
    if (key.type != query.type || value.type != query.type) check_own(api, VP_UNKNOWN_DTYPE);
    ScoreShape shape;
    check_own(api, check_score_shape(full[0], full[1], valid.dims[1], kernel.score.prefix, full[3], shape));
    float* score = static_cast<float*>(output_tensor(api, context, 3, valid.dims));
    const uint8_t* mask = static_cast<const uint8_t*>(valid.data);
    token_score(kernel.score, dtype_of(api, query.type), query.data, key.data, value.data, mask, shape, score);
    write_selection(api, context, select_tokens(kernel.sample, score, mask, shape.batch, shape.patches));
}

ONNXTensorElementDataType input_type(const OrtCustomOp* op, size_t index) {
    const bool is_valid = index == (self(op).fused ? 3u : 1u);
    if (is_valid) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return self(op).fused ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

SampleInputs sample_inputs(const OrtApi& api, OrtKernelContext* context) {
    const TensorView score = input_tensor(api, context, 0);
    const TensorView valid = input_tensor(api, context, 1);
    if (score.dims.size() != 2 || valid.dims != score.dims) {
        fail(api, ORT_INVALID_ARGUMENT, "score and valid must both have the shape [batch, patches]");
    }
    check_own(api, check_shape(score.dims[0], score.dims[1]));
    return {static_cast<const float*>(score.data), static_cast<const uint8_t*>(valid.data),
            static_cast<int32_t>(score.dims[0]), static_cast<int32_t>(score.dims[1])};
}

Operator::Operator(const char* name_, const char* provider_, bool fused_, ComputeFunction compute_)
    : OrtCustomOp{}, name(name_), provider(provider_), fused(fused_), compute(compute_) {
    version = kOrtApi;
    GetName = [](const OrtCustomOp* op) { return self(op).name; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op).provider; };
    GetInputTypeCount = [](const OrtCustomOp* op) -> size_t { return self(op).fused ? 4 : 2; };
    GetInputType = input_type;
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp* op) -> size_t { return self(op).fused ? 4 : 3; };
    GetOutputType = [](const OrtCustomOp*, size_t index) { return kOutputTypes[index]; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute_kernel;
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
}

}  // namespace vitprune

namespace {

// Lives as long as the process: sessions refer to it.
OrtCustomOpDomain* make_domain(const OrtApi& api) {
    using namespace vitprune;
    static const Operator sample("TokenSample", nullptr, false, compute_sample);
    static const Operator score_sample("TokenScoreSample", nullptr, true, compute_score_sample);
    OrtCustomOpDomain* domain = nullptr;
    check(api.CreateCustomOpDomain("vitprune", &domain));
    check(api.CustomOpDomain_Add(domain, &sample));
    check(api.CustomOpDomain_Add(domain, &score_sample));
    add_merge_operators(api, domain);
    add_site_operators(api, domain);
    add_halt_operator(api, domain);
    add_packed_operator(api, domain);
    add_column_operator(api, domain);
    add_predictor_operator(api, domain);
#if VITPRUNE_FEATURES & 1
    static const Operator sample_cuda("TokenSample", "CUDAExecutionProvider", false, compute_sample_cuda);
    check(api.CustomOpDomain_Add(domain, &sample_cuda));
    add_cuda_site_operator(api, domain);
    add_cuda_merge_operators(api, domain);
#endif
    return domain;
}

}  // namespace

extern "C" VP_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(vitprune::kOrtApi);
    if (api == nullptr) return base->GetApi(1)->CreateStatus(ORT_FAIL, "vitprune: ONNX Runtime 1.16 or newer is needed");
    return vitprune::guarded(*api, [&] {
        vitprune::find_pool(base);
        static OrtCustomOpDomain* const domain = make_domain(*api);
        vitprune::check(api->AddCustomOpDomain(options, domain));
    });
}
