// SPDX-License-Identifier: Apache-2.0
//
// What operators on the CUDA execution provider share: their table, errors, memory of one call, and the way back of kept counts.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "onnxruntime/cpu_operator.h"

namespace vitprune {

template <typename Kernel>
struct OperatorOn : CpuOperator<Kernel> {
    explicit OperatorOn(const char* provider) : provider(provider) {
        this->GetExecutionProviderType = [](const OrtCustomOp* op) { return static_cast<const OperatorOn*>(op)->provider; };
    }
    const char* provider;
};

// provider: null for the CPU, where the tests have kernels that are emulated.
template <typename Kernel>
void add_operator_on(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider) {
    static const OperatorOn<Kernel> one(provider);  // lives as long as the process: sessions refer to it
    check(api.CustomOpDomain_Add(domain, &one));
}

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
