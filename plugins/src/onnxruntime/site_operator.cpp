// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/site_operator.h"

#include <algorithm>

#include "host/prune_site.h"
#include "onnxruntime/pool.h"
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

struct SiteKernel {
    const OrtApi& api;
    SiteParameters parameters;
};

OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] { *kernel = new SiteKernel{*api, read_site(*api, info)}; });
}

void compute(const SiteKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const SiteTensors tensors(api, context, kernel.parameters);
    const SiteShape& shape = tensors.shape;
    const ForEach each = pool_of(context);
    const float* score = tensors.in.score;
    std::vector<float> own;
    if (kernel.parameters.form != SiteForm::kGiven) {
        own.resize(static_cast<size_t>(shape.batch) * shape.patches);
        site_score(kernel.parameters, tensors.in, shape, own.data(), each);
        score = own.data();
    }
    const Selection selection = select_site(kernel.parameters, tensors.in, shape, score);
    float* told = nullptr;
    const SiteOutputs out = site_outputs(api, context, kernel.parameters, shape, selection.count, told);
    if (told != nullptr) std::copy(score, score + static_cast<size_t>(shape.batch) * shape.patches, told);
    write_site(kernel.parameters, tensors.in, shape, score, selection, out, each);
}

OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
    const SiteKernel& made = *static_cast<const SiteKernel*>(kernel);
    return guarded(made.api, [&] { compute(made, context); });
}

struct SiteOperator : OrtCustomOp {
    SiteOperator() : OrtCustomOp{} {
        version = kOrtApi;
        describe_site(*this);
        GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
        GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
        CreateKernelV2 = create_kernel;
        KernelComputeV2 = compute_kernel;
        KernelDestroy = [](void* kernel) { delete static_cast<SiteKernel*>(kernel); };
    }
};

}  // namespace

void add_site_operators(const OrtApi& api, OrtCustomOpDomain* domain) {
    static const SiteOperator site;  // lives as long as the process: sessions refer to it
    check(api.CustomOpDomain_Add(domain, &site));
}

}  // namespace vitprune
