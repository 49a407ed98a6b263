// SPDX-License-Identifier: Apache-2.0
//
// TokenSample on the CUDA execution provider. Outputs of a data-dependent size must be allocated from the host, so the
// kept counts come back in between; with padding nothing is waited for.
#include "cuda/launch.h"
#include "onnxruntime/cuda_scratch.h"
#include "onnxruntime/operators.h"

namespace vitprune {
void compute_sample_cuda(const OperatorKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const SampleInputs in = sample_inputs(api, context);
    const cudaStream_t stream = stream_of(api, context);
    const Scratch scratch(api, sample_workspace(in.batch, in.patches), stream);
    check_cuda(api, select_on_device(kernel.sample, in.score, in.valid, in.batch, in.patches, scratch.data(), stream));
    const int64_t count = kernel.sample.padded ? row_limit(kernel.sample, in.patches)
                                               : largest_count(api, kept_counts(scratch.data()), in.batch, stream);
    const std::vector<int64_t> dims{in.batch, count};
    int64_t* index = static_cast<int64_t*>(output_tensor(api, context, 0, dims));
    uint8_t* keep = static_cast<uint8_t*>(output_tensor(api, context, 1, dims));
    int64_t* count_out = static_cast<int64_t*>(output_tensor(api, context, 2, {}));
    check_cuda(api, emit_on_device(count, index, keep, count_out, in.batch, in.patches, scratch.data(), stream));
}

}  // namespace vitprune
