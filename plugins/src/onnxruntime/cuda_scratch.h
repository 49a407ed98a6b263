// SPDX-License-Identifier: Apache-2.0
//
// What operators on the CUDA execution provider share: errors, memory of one call, and the way back of kept counts.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "onnxruntime/api.h"

namespace vitprune {

inline void check_cuda(const OrtApi& api, cudaError_t error) {
    if (error != cudaSuccess) fail(api, ORT_FAIL, cudaGetErrorString(error));
}

inline cudaStream_t stream_of(const OrtApi& api, OrtKernelContext* context) {
    void* raw = nullptr;
    check(api.KernelContext_GetGPUComputeStream(context, &raw));
    return static_cast<cudaStream_t>(raw);
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

// K of a batch without padding: outputs of a data-dependent size are allocated from the host, so the counts are waited for.
inline int64_t largest_count(const OrtApi& api, const int32_t* kept, int32_t batch, cudaStream_t stream) {
    std::vector<int32_t> counts(batch);
    check_cuda(api, cudaMemcpyAsync(counts.data(), kept, batch * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
    check_cuda(api, cudaStreamSynchronize(stream));
    return std::max(1, *std::max_element(counts.begin(), counts.end()));
}

}  // namespace vitprune
