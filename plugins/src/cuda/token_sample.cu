// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block_launch.cuh"
#include "cuda/launch.h"
#include "cuda/workspace.cuh"

namespace vitprune {
namespace {

// Selects the tokens of one image per block, and lays them out where K is known.
struct SelectProgram {
    using Shared = BlockShared;
    static constexpr int kMaxThreads = 1024;
    SampleParameters parameters;
    const float* score;
    const uint8_t* valid;
    int32_t batch;
    int32_t patches;
    int32_t limit;
    void* workspace;
    Outputs outputs;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        const int32_t b = static_cast<int32_t>(blockIdx.x);
        const SampleWorkspace layout(workspace, batch, patches);
        const ImageScratch scratch = layout.image(b, patches, dynamic);
        const size_t row = static_cast<size_t>(b) * patches;
        const int32_t kept = select_image(parameters, score + row, valid + row, patches, limit, scratch, shared);
        finish_image(outputs, b, kept, layout, scratch, patches, shared);
    }
};

// Lays out the selection of one image per block. fixed_count <= 0: K is the largest kept count of the batch.
struct EmitProgram {
    using Shared = BlockShared;
    static constexpr int kMaxThreads = 1024;
    int32_t batch;
    int32_t patches;
    void* workspace;
    int64_t fixed_count;
    int64_t* index;
    uint8_t* keep;
    int64_t* count_out;

    __device__ void operator()(char*, Shared& shared) const {
        const int32_t b = static_cast<int32_t>(blockIdx.x);
        const SampleWorkspace layout(workspace, batch, patches);
        int64_t count = fixed_count;
        if (count <= 0) {
            unsigned long long largest = 1;
            for (int32_t i = threadIdx.x; i < batch; i += blockDim.x) {
                largest = max(largest, static_cast<unsigned long long>(layout.counts[i]));
            }
            count = static_cast<int64_t>(block_reduce(largest, Maximum(), shared));
        }
        const uint8_t* mask = layout.masks + static_cast<size_t>(b) * patches;
        emit_image(mask, patches, count, index + b * count, keep + b * count, shared);
        if (b == 0 && threadIdx.x == 0 && count_out != nullptr) *count_out = count;
    }
};

int32_t block_threads(int32_t patches) { return std::min(std::max(power_of_two_above(patches), 64), 1024); }

cudaError_t launch_select(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                          int32_t patches, void* workspace, const Outputs& outputs, cudaStream_t stream) {
    const int32_t limit = row_limit(parameters, patches);
    const SelectProgram program{parameters, score, valid, batch, patches, limit, workspace, outputs};
    return launch_blocks(program, batch, block_threads(patches), shared_bytes(patches), stream);
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
    const EmitProgram program{batch, patches, workspace, count, index, keep, count_out};
    return launch_blocks(program, batch, block_threads(patches), 0, stream);
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
