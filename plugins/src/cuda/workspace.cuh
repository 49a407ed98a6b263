// SPDX-License-Identifier: Apache-2.0
//
// Layout of the sampling workspace: kept counts int32 [B], masks bool [B,P], then keys and lower counts of each image.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/token_sample.cuh"

namespace vitprune {

constexpr int32_t kSharedPatches = 2048;  // up to here keys and lower counts fit in 24 KiB of shared memory

__host__ __device__ inline size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// The next `count` values of a workspace.
template <typename Value>
__host__ __device__ Value* take(char*& at, size_t count) {
    Value* own = reinterpret_cast<Value*>(at);
    at += aligned(count * sizeof(Value));
    return own;
}

__host__ __device__ inline size_t image_bytes(int32_t patches) {
    const size_t slots = static_cast<size_t>(power_of_two_above(patches));
    return slots * (sizeof(unsigned long long) + sizeof(int32_t));
}

struct SampleWorkspace {
    int32_t* counts;
    uint8_t* masks;
    char* images;

    __host__ __device__ SampleWorkspace(void* base, int32_t batch, int32_t patches) {
        char* bytes = static_cast<char*>(base);
        counts = reinterpret_cast<int32_t*>(bytes);
        masks = reinterpret_cast<uint8_t*>(bytes + aligned(batch * sizeof(int32_t)));
        images = reinterpret_cast<char*>(masks) + aligned(static_cast<size_t>(batch) * patches);
    }

    __host__ __device__ static size_t bytes(int32_t batch, int32_t patches) {
        const size_t images = patches > kSharedPatches ? batch * image_bytes(patches) : 0;
        return aligned(batch * sizeof(int32_t)) + aligned(static_cast<size_t>(batch) * patches) + aligned(images);
    }

    __device__ ImageScratch image(int32_t b, int32_t patches, char* shared_bytes) const {
        char* own = patches > kSharedPatches ? images + b * image_bytes(patches) : shared_bytes;
        const size_t slots = static_cast<size_t>(power_of_two_above(patches));
        return {reinterpret_cast<unsigned long long*>(own), reinterpret_cast<int32_t*>(own + slots * sizeof(unsigned long long)),
                masks + static_cast<size_t>(b) * patches};
    }
};

inline size_t shared_bytes(int32_t patches) { return patches > kSharedPatches ? 0 : image_bytes(patches); }

// What a block does after it has selected: store the count, and the row too when K is known.
struct Outputs {
    int64_t* index;
    uint8_t* keep;
    int64_t* count;
    int64_t fixed_count;  // K when known before the launch, 0 = the image's own count (one image), -1 = a later launch emits
};

__device__ inline void finish_image(const Outputs& outputs, int32_t b, int32_t kept, const SampleWorkspace& workspace,
                                    const ImageScratch& scratch, int32_t patches, BlockShared& shared) {
    if (threadIdx.x == 0) workspace.counts[b] = kept;
    if (outputs.fixed_count < 0) return;
    const int64_t count = outputs.fixed_count > 0 ? outputs.fixed_count : max(kept, 1);
    emit_image(scratch.mask, patches, count, outputs.index + b * count, outputs.keep + b * count, shared);
    if (b == 0 && threadIdx.x == 0 && outputs.count != nullptr) *outputs.count = count;
}

}  // namespace vitprune
