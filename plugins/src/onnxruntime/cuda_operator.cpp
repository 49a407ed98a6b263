// SPDX-License-Identifier: Apache-2.0
//
// TokenSample on the CUDA execution provider. Outputs of a data-dependent size must be allocated from the host, so the
// kept counts come back in between; with padding nothing is waited for.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/launch.h"
#include "onnxruntime/operators.h"

namespace vitprune {
namespace {

void check_cuda(const OrtApi& api, cudaError_t error) {
    if (error != cudaSuccess) fail(api, ORT_FAIL, cudaGetErrorString(error));
}

// Device memory of one call, freed in stream order.
class Scratch {
public:
    Scratch(const OrtApi& api, size_t bytes, cudaStream_t stream) : stream_(stream) {
        check_cuda(api, cudaMallocAsync(&data_, bytes, stream));
    }
    ~Scratch() { cudaFreeAsync(data_, stream_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* data() const { return data_; }

private:
    void* data_ = nullptr;
    cudaStream_t stream_;
};

int64_t largest_count(const OrtApi& api, void* workspace, int32_t batch, cudaStream_t stream) {
    std::vector<int32_t> counts(batch);
    check_cuda(api, cudaMemcpyAsync(counts.data(), kept_counts(workspace), batch * sizeof(int32_t), cudaMemcpyDeviceToHost,
                                    stream));
    check_cuda(api, cudaStreamSynchronize(stream));
    return std::max(1, *std::max_element(counts.begin(), counts.end()));
}

}  // namespace

void compute_sample_cuda(const OperatorKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const SampleInputs in = sample_inputs(api, context);
    void* raw_stream = nullptr;
    check(api.KernelContext_GetGPUComputeStream(context, &raw_stream));
    const cudaStream_t stream = static_cast<cudaStream_t>(raw_stream);
    const Scratch scratch(api, sample_workspace(in.batch, in.patches), stream);
    check_cuda(api, select_on_device(kernel.sample, in.score, in.valid, in.batch, in.patches, scratch.data(), stream));
    const int64_t count = kernel.sample.padded ? row_limit(kernel.sample, in.patches)
                                               : largest_count(api, scratch.data(), in.batch, stream);
    const std::vector<int64_t> dims{in.batch, count};
    int64_t* index = static_cast<int64_t*>(output_tensor(api, context, 0, dims));
    uint8_t* keep = static_cast<uint8_t*>(output_tensor(api, context, 1, dims));
    int64_t* count_out = static_cast<int64_t*>(output_tensor(api, context, 2, {}));
    check_cuda(api, emit_on_device(count, index, keep, count_out, in.batch, in.patches, scratch.data(), stream));
}

}  // namespace vitprune
