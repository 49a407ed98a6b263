// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/workspace.cuh"

namespace vitprune {
namespace {

__global__ void __launch_bounds__(1024)
    select_kernel(SampleParameters parameters, const float* score, const uint8_t* valid, int32_t batch, int32_t patches,
                  int32_t limit, void* base, Outputs outputs) {
    extern __shared__ __align__(16) char dynamic[];
    __shared__ BlockShared shared;
    const int32_t b = static_cast<int32_t>(blockIdx.x);
    const SampleWorkspace workspace(base, batch, patches);
    const ImageScratch scratch = workspace.image(b, patches, dynamic);
    const size_t row = static_cast<size_t>(b) * patches;
    const int32_t kept = select_image(parameters, score + row, valid + row, patches, limit, scratch, shared);
    finish_image(outputs, b, kept, workspace, scratch, patches, shared);
}

// count <= 0: K is the largest kept count of the batch.
__global__ void __launch_bounds__(1024)
    emit_kernel(int32_t batch, int32_t patches, void* base, int64_t count, int64_t* index, uint8_t* keep, int64_t* count_out) {
    __shared__ BlockShared shared;
    const int32_t b = static_cast<int32_t>(blockIdx.x);
    const SampleWorkspace workspace(base, batch, patches);
    if (count <= 0) {
        unsigned long long largest = 1;
        for (int32_t i = threadIdx.x; i < batch; i += blockDim.x) {
            largest = max(largest, static_cast<unsigned long long>(workspace.counts[i]));
        }
        count = static_cast<int64_t>(block_reduce(largest, Maximum(), shared));
    }
    const uint8_t* mask = workspace.masks + static_cast<size_t>(b) * patches;
    emit_image(mask, patches, count, index + b * count, keep + b * count, shared);
    if (b == 0 && threadIdx.x == 0 && count_out != nullptr) *count_out = count;
}

int32_t block_threads(int32_t patches) { return std::min(std::max(power_of_two_above(patches), 64), 1024); }

cudaError_t launch_select(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                          int32_t patches, void* workspace, const Outputs& outputs, cudaStream_t stream) {
    select_kernel<<<batch, block_threads(patches), shared_bytes(patches), stream>>>(
        parameters, score, valid, batch, patches, row_limit(parameters, patches), workspace, outputs);
    return cudaPeekAtLastError();
}

}  // namespace

size_t sample_workspace(int32_t batch, int32_t patches) { return SampleWorkspace::bytes(batch, patches); }

int32_t* kept_counts(void* workspace) { return static_cast<int32_t*>(workspace); }

cudaError_t select_on_device(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                             int32_t patches, void* workspace, cudaStream_t stream) {
    return launch_select(parameters, score, valid, batch, patches, workspace, {nullptr, nullptr, nullptr, -1}, stream);
}

cudaError_t emit_on_device(int64_t count, int64_t* index, uint8_t* keep, int64_t* count_out, int32_t batch, int32_t patches,
                           void* workspace, cudaStream_t stream) {
    emit_kernel<<<batch, block_threads(patches), 0, stream>>>(batch, patches, workspace, count, index, keep, count_out);
    return cudaPeekAtLastError();
}

cudaError_t sample_on_device(const SampleParameters& parameters, const SampleTensors& tensors, int32_t batch, int32_t patches,
                             void* workspace, cudaStream_t stream) {
    const bool known = parameters.padded || batch == 1;
    const int64_t fixed = parameters.padded ? row_limit(parameters, patches) : 0;
    const Outputs outputs{tensors.index, tensors.keep, tensors.count, known ? fixed : -1};
    const cudaError_t error =
        launch_select(parameters, tensors.score, tensors.valid, batch, patches, workspace, outputs, stream);
    if (error != cudaSuccess || known) return error;
    return emit_on_device(0, tensors.index, tensors.keep, tensors.count, batch, patches, workspace, stream);
}

}  // namespace vitprune
