// SPDX-License-Identifier: Apache-2.0
//
// One launch in stages: the blocks of a stage wait for the stage before it, image by image.
//
// A block draws a number when it starts, and the number says what it does: all blocks of the first stage have lower ones than those of
// the second. So whoever a block waits for has started and will finish, however many blocks fit on the device at once, and the launch
// needs no cooperation of the driver. The block that finishes its stage last for an image closes it, and only then the next one begins.
//
// What blocks leave for others goes through global memory between __threadfence() of both and the counter of the image, so plain loads
// of it are not older than the counter.
#pragma once

#include <cstdint>

#include "block_launch.cuh"

namespace vitprune {

constexpr unsigned int kNoMoreStages = 0x40000000u;  // on the counter of an image for which later stages have nothing to do

struct StageShared {
    unsigned int number;
    unsigned int seen;
    bool last;
};

// What a block does.
struct StagePlace {
    int32_t stage, image, part, parts;
    unsigned int before;  // the counter of the image when everything before this stage is closed
};

// `first` blocks per image in the first stage and `later` in each of the others.
struct Stages {
    int32_t batch, first, later, count;

    __host__ __device__ int64_t blocks() const { return static_cast<int64_t>(batch) * (first + static_cast<int64_t>(later) * (count - 1)); }

    __device__ StagePlace place(unsigned int number) const {
        const unsigned int opening = static_cast<unsigned int>(batch) * first;
        if (number < opening) {
            return {0, static_cast<int32_t>(number / first), static_cast<int32_t>(number % first), first, 0};
        }
        const unsigned int rest = number - opening, stage = rest / (static_cast<unsigned int>(batch) * later);
        const unsigned int own = rest % (static_cast<unsigned int>(batch) * later);
        return {static_cast<int32_t>(stage) + 1, static_cast<int32_t>(own / later), static_cast<int32_t>(own % later), later,
                static_cast<unsigned int>(first) + 1 + stage * (static_cast<unsigned int>(later) + 1)};
    }
};

// Waits for what comes before; false where the image is done with. counters: of the launch, then one per image, all zero before.
__device__ inline bool begin_stage(const Stages& stages, unsigned int* counters, StagePlace& place, StageShared& shared) {
    if (threadIdx.x == 0) shared.number = atomicAdd(counters, 1u);
    __syncthreads();
    place = stages.place(shared.number);
    if (place.stage == 0) return true;
    if (threadIdx.x == 0) {
        volatile unsigned int* counter = counters + 1 + place.image;
        while ((shared.seen = *counter) < place.before) __nanosleep(200);
        __threadfence();
    }
    __syncthreads();
    __threadfence();
    return shared.seen < kNoMoreStages;
}

// True in the block that finishes the stage of its image last, for which everything of the stage is visible then.
__device__ inline bool end_stage(unsigned int* counters, const StagePlace& place, StageShared& shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.last = atomicAdd(counters + 1 + place.image, 1u) + 1 == place.before + static_cast<unsigned int>(place.parts);
    }
    __syncthreads();
    __threadfence();
    return shared.last;
}

// After the last block has closed the stage: lets the next one begin.
__device__ inline void close_stage(unsigned int* counters, const StagePlace& place, bool done) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(counters + 1 + place.image, done ? kNoMoreStages : 1u);
}

// A block program of stages. Site: copyable, with a type Shared that has `stage`, and
//   work(place, shared)           a block's part of a stage
//   bool close(place, dynamic, shared)   by the last block of an image's stage; true where later stages have nothing to do for it.
template <typename Site, int kThreads>
struct StagedProgram {
    using Shared = typename Site::Shared;
    static constexpr int kMaxThreads = kThreads;
    Stages stages;
    Site site;
    unsigned int* counters;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        StagePlace place;
        if (!begin_stage(stages, counters, place, shared.stage)) return;
        site.work(place, shared);
        if (!end_stage(counters, place, shared.stage)) return;
        close_stage(counters, place, site.close(place, dynamic, shared));
    }
};

// `counters` are set to zero in front of it.
template <typename Site>
cudaError_t launch_stages(const Site& site, const Stages& stages, unsigned int* counters, size_t dynamic_bytes, cudaStream_t stream) {
    constexpr int kThreads = 256;
    if (stages.blocks() > INT32_MAX) return cudaErrorInvalidValue;
    const cudaError_t error = cudaMemsetAsync(counters, 0, (1 + static_cast<size_t>(stages.batch)) * sizeof(unsigned int), stream);
    if (error != cudaSuccess) return error;
    const StagedProgram<Site, kThreads> program{stages, site, counters};
    return launch_blocks(program, static_cast<int32_t>(stages.blocks()), kThreads, dynamic_bytes, stream);
}

}  // namespace vitprune
