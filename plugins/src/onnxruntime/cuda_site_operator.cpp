// SPDX-License-Identifier: Apache-2.0
//
// Two launches; with padding nothing is waited for.
#include "onnxruntime/cuda_site_operator.h"

#include "cuda/site_launch.h"
#include "onnxruntime/cuda_scratch.h"
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

template <typename Types>
class CudaSiteKernel {
public:
    static constexpr const char* kName = "PruneSite";
    static constexpr Signature kReads = signature(Types::kInputs, 1), kWrites = signature(Types::kOutputs, 1);

    CudaSiteKernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api), parameters_(read_site(api, info)) {}

    void compute(OrtKernelContext* context) const {
        const SiteTensors tensors(api_, context, parameters_);
        const SiteShape& shape = tensors.shape;
        const cudaStream_t stream = stream_of(api_, context);
        const Scratch scratch(api_, site_workspace(shape), stream);
        check_cuda(api_, select_site_on_device(parameters_, tensors.in, shape, scratch.data(), stream));
        const int64_t count = parameters_.sample.padded
                                  ? row_limit(parameters_.sample, shape.patches)
                                  : largest_count(api_, site_counts(shape, scratch.data()), shape.batch, stream);
        const SiteResults made = site_results(api_, context, parameters_, shape, count);
        check_cuda(api_, write_site_on_device(parameters_, tensors.in, shape, made.out, nullptr, made.score, scratch.data(), stream));
        if (made.shape == nullptr) return;
        // From memory that is not pinned: CUDA has read it when the call returns.
        check_cuda(api_, cudaMemcpyAsync(made.shape, made.dims.data(), sizeof(made.dims), cudaMemcpyHostToDevice, stream));
    }

private:
    const OrtApi& api_;
    SiteParameters parameters_;
};

}  // namespace

void add_cuda_site_operator(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider) {
    for_site_types([&](auto types) { add_operator_on<CudaSiteKernel<decltype(types)>>(api, domain, provider); });
}

}  // namespace vitprune
