// SPDX-License-Identifier: Apache-2.0
//
// Two launches; with padding nothing is waited for.
#include "onnxruntime/cuda_merge_operators.h"

#include "cuda/merge_launch.h"
#include "onnxruntime/cuda_scratch.h"
#include "onnxruntime/merge_tensors.h"

namespace vitprune {
namespace {

template <MergeKind kKind>
class CudaMergeKernel {
public:
    using Form = MergeForm<kKind>;
    static constexpr const char* kName = Form::kName;
    static constexpr Signature kReads = signature(Form::kInputs, Form::kRequired), kWrites = signature(Form::kOutputs, 5);

    CudaMergeKernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api), node_(api, info, kKind) {}

    void compute(OrtKernelContext* context) const {
        const MergeTensors tensors(api_, context, node_);
        const MergeParameters& parameters = node_.parameters;
        const MergeShape& shape = tensors.shape;
        const cudaStream_t stream = stream_of(api_, context);
        const Scratch scratch(api_, merge_workspace(parameters, shape), stream);
        check_cuda(api_, decide_merge_on_device(parameters, tensors.in, shape, scratch.data(), stream));
        const int64_t count = parameters.padded
                                  ? parameters.most
                                  : largest_count(api_, merge_counts(parameters, shape, scratch.data()), shape.batch, stream);
        const MergeResults made = merge_results(api_, context, kKind, tensors, count);
        check_cuda(api_, write_merge_on_device(parameters, tensors.in, shape, made.out, nullptr, scratch.data(), stream));
        if (made.shape == nullptr) return;
        // From memory that is not pinned: CUDA has read it when the call returns.
        check_cuda(api_, cudaMemcpyAsync(made.shape, made.dims.data(), sizeof(made.dims), cudaMemcpyHostToDevice, stream));
    }

private:
    const OrtApi& api_;
    MergeNode node_;
};

}  // namespace

void add_cuda_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider) {
    add_operator_on<CudaMergeKernel<MergeKind::kPair>>(api, domain, provider);
    add_operator_on<CudaMergeKernel<MergeKind::kWard>>(api, domain, provider);
    add_operator_on<CudaMergeKernel<MergeKind::kSampled>>(api, domain, provider);
}

}  // namespace vitprune
