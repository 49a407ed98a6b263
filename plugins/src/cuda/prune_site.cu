// SPDX-License-Identifier: Apache-2.0
//
// The first launch of PruneSite scores and selects: one block per image and head computes that head's attention, and the block that
// finishes last for its image adds the heads in order and selects; with a given score it is one block per image.
#include "block_launch.cuh"
#include "cuda/site_launch.h"
#include "cuda/site_select.cuh"

namespace vitprune {
namespace {

struct SiteShared {
    BlockShared block;
    float partial[kScoreThreads];
    bool last;
};

// One block per image, which takes the score that is given.
struct SiteSelectProgram {
    using Shared = BlockShared;
    static constexpr int kMaxThreads = 1024;
    Selecting selecting;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        const int32_t b = static_cast<int32_t>(blockIdx.x), patches = selecting.shape.patches;
        const SiteWorkspace layout(selecting.workspace, selecting.shape);
        const uint8_t* valid = selecting.note_valid(b, layout);
        for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) {
            layout.score[static_cast<size_t>(b) * patches + j] = selecting.in.score[static_cast<size_t>(b) * patches + j];
        }
        __syncthreads();
        selecting.select(b, layout, valid, dynamic, shared);
    }
};

// One block per image and head.
struct SiteScoreProgram {
    using Shared = SiteShared;
    static constexpr int kMaxThreads = kScoreThreads;
    Selecting selecting;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        const SiteShape& shape = selecting.shape;
        const int32_t b = static_cast<int32_t>(blockIdx.x) / shape.heads, h = static_cast<int32_t>(blockIdx.x) % shape.heads;
        const SiteWorkspace layout(selecting.workspace, shape);
        const size_t own = static_cast<size_t>(blockIdx.x) * shape.tokens();
        const bool values = reads_value(selecting.parameters.form);
        head_attention(selecting.in, shape, b, h, layout.attention + own, values ? layout.squares + own : nullptr, shared.partial);
        if (!is_last_head(layout.tickets + b, shared)) return;
        const uint8_t* valid = selecting.note_valid(b, layout);
        __syncthreads();
        add_heads(b, layout, valid);
        selecting.select(b, layout, valid, dynamic, shared.block);
    }

    // Draws a ticket; true in the block that draws the image's last one, after which all heads' results are visible.
    __device__ bool is_last_head(unsigned int* ticket, Shared& shared) const {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) shared.last = atomicAdd(ticket, 1u) + 1 == static_cast<unsigned int>(selecting.shape.heads);
        __syncthreads();
        __threadfence();
        return shared.last;
    }

    __device__ void add_heads(int32_t b, const SiteWorkspace& layout, const uint8_t* valid) const {
        const SiteShape& shape = selecting.shape;
        for (int32_t j = threadIdx.x; j < shape.patches; j += kScoreThreads) {
            const float all = score_of_heads(selecting.parameters.form, shape, layout.attention, layout.squares, b, j);
            layout.score[static_cast<size_t>(b) * shape.patches + j] = valid[j] ? all : 0.0f;
        }
        __syncthreads();
    }
};

int32_t select_threads(int32_t patches) {
    const int32_t threads = power_of_two_above(patches);
    return threads < 64 ? 64 : threads > 1024 ? 1024 : threads;
}

}  // namespace

size_t site_workspace(const SiteShape& shape) { return SiteWorkspace(nullptr, shape).bytes; }

int32_t* site_counts(const SiteShape& shape, void* workspace) {
    return SampleWorkspace(SiteWorkspace(workspace, shape).sample, shape.batch, shape.patches).counts;
}

cudaError_t select_site_on_device(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, void* workspace,
                                  cudaStream_t stream) {
    const Selecting selecting{parameters, in, shape, row_limit(parameters.sample, shape.patches), workspace};
    const size_t dynamic = shared_bytes(shape.patches);
    if (parameters.form == SiteForm::kGiven) {
        return launch_blocks(SiteSelectProgram{selecting}, shape.batch, select_threads(shape.patches), dynamic, stream);
    }
    const SiteWorkspace layout(workspace, shape);
    const cudaError_t error = cudaMemsetAsync(layout.tickets, 0, shape.batch * sizeof(unsigned int), stream);
    if (error != cudaSuccess) return error;
    return launch_blocks(SiteScoreProgram{selecting}, shape.batch * shape.heads, kScoreThreads, dynamic, stream);
}

}  // namespace vitprune
