// SPDX-License-Identifier: Apache-2.0
//
// TokenSample for one image by one thread block.
#pragma once

#include "arithmetic.h"
#include "cuda/block.cuh"
#include "parameters.h"

namespace vitprune {

// Memory of one image: sort keys (a power of two of them), F at the lower midpoints, and which tokens are kept. `keys`
// and `lower` may lie in shared memory; `mask` outlives the block's first phase and lies in global memory.
struct ImageScratch {
    unsigned long long* keys;
    int32_t* lower;
    uint8_t* mask;
};

__host__ __device__ inline int32_t power_of_two_above(int32_t value) {
    int32_t power = 1;
    while (power < value) power *= 2;
    return power;
}

// Keys of the valid tokens in index order; returns how many there are.
__device__ inline int32_t collect_keys(const float* score, const uint8_t* valid, int32_t patches, const ImageScratch& scratch,
                                       BlockShared& shared) {
    unsigned long long bits = 0;  // non-negative floats order like their bits
    for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) {
        if (valid[j]) bits = max(bits, static_cast<unsigned long long>(bits_of(clean_score(score[j]))));
    }
    const float top = float_of(static_cast<uint32_t>(block_reduce(bits, Maximum(), shared)));
    int32_t found = 0;
    for (int32_t base = 0; base < patches; base += blockDim.x) {
        const int32_t j = base + static_cast<int32_t>(threadIdx.x);
        const bool present = j < patches && valid[j];
        unsigned long long total;
        const unsigned long long rank = block_inclusive_sum(present, total, shared);
        if (present) scratch.keys[found + static_cast<int32_t>(rank) - 1] = ascending_key(relative_score(score[j], top), j);
        found += static_cast<int32_t>(total);
    }
    __syncthreads();
    return found;
}

__device__ inline void sort_keys(unsigned long long* keys, int32_t found) {
    const int32_t size = power_of_two_above(found);
    for (int32_t k = found + static_cast<int32_t>(threadIdx.x); k < size; k += blockDim.x) keys[k] = ~0ull;
    block_sort(keys, size);
}

// Marks the tokens whose stretch of the cumulated weights holds a sampling point.
__device__ inline void mark_sampled(const SampleParameters& parameters, int32_t found, const ImageScratch& scratch,
                                    BlockShared& shared) {
    unsigned long long sum = 0;
    for (int32_t k = threadIdx.x; k < found; k += blockDim.x) sum += key_weight(scratch.keys[k]);
    Grid grid{parameters.mode == Mode::kOfficial, static_cast<uint64_t>(parameters.samples), 0, 0};
    grid.total = block_reduce(sum, Sum(), shared);
    if (found > 0) grid.start = key_weight(scratch.keys[0]) + (found > 1 ? key_weight(scratch.keys[1]) : 0);

    unsigned long long before = 0;
    for (int32_t base = 0; base < found; base += blockDim.x) {
        const int32_t k = base + static_cast<int32_t>(threadIdx.x);
        const unsigned long long q = k < found ? key_weight(scratch.keys[k]) : 0;
        unsigned long long total;
        const unsigned long long cumulated = before + block_inclusive_sum(q, total, shared);
        if (k < found) scratch.lower[k] = k == 0 ? 0 : points_below(grid, 2 * cumulated - q);
        before += total;
    }
    __syncthreads();
    for (int32_t k = threadIdx.x; k < found; k += blockDim.x) {
        const int32_t upper = k + 1 == found ? parameters.samples : scratch.lower[k + 1];
        scratch.mask[key_index(scratch.keys[k])] = upper > scratch.lower[k];
    }
}

// Unmarks all but the `limit` preferred tokens: finds the preference of the last one eight bits at a time.
__device__ inline void shrink_mask(const float* score, int32_t patches, int32_t limit, uint8_t* mask, BlockShared& shared) {
    unsigned long long prefix = 0;
    int32_t rest = limit;
    for (int shift = kPreferenceBits - 8; shift >= 0; shift -= 8) {
        for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) shared.histogram[bin] = 0;
        __syncthreads();
        for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) {
            const unsigned long long wanted = preference(score[j], j);
            if (mask[j] && wanted >> (shift + 8) == prefix) atomicAdd(&shared.histogram[wanted >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = 255;
            while (bin > 0 && static_cast<int32_t>(shared.histogram[bin]) < rest) {
                rest -= static_cast<int32_t>(shared.histogram[bin]);
                --bin;
            }
            shared.chosen_prefix = prefix << 8 | static_cast<unsigned long long>(bin);
            shared.chosen_rest = rest;
        }
        __syncthreads();
        prefix = shared.chosen_prefix;
        rest = shared.chosen_rest;
    }
    for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) {
        if (mask[j] && preference(score[j], j) < prefix) mask[j] = 0;
    }
    __syncthreads();
}

// Fills scratch.mask [P] and returns the number of kept tokens, at most `limit`.
__device__ inline int32_t select_image(const SampleParameters& parameters, const float* score, const uint8_t* valid,
                                       int32_t patches, int32_t limit, const ImageScratch& scratch, BlockShared& shared) {
    const bool sampling = parameters.mode != Mode::kThreshold;
    for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) {
        scratch.mask[j] = !sampling && valid[j] && score[j] > parameters.threshold;
    }
    if (sampling) {
        const int32_t found = collect_keys(score, valid, patches, scratch, shared);
        if (parameters.mode == Mode::kOfficial) sort_keys(scratch.keys, found);
        mark_sampled(parameters, found, scratch, shared);
    }
    __syncthreads();
    unsigned long long own = 0;
    for (int32_t j = threadIdx.x; j < patches; j += blockDim.x) own += scratch.mask[j];
    const int32_t kept = static_cast<int32_t>(block_reduce(own, Sum(), shared));
    if (kept <= limit) return kept;
    shrink_mask(score, patches, limit, scratch.mask, shared);
    return limit;
}

// Writes one row of `count` slots: marked positions ascending, then 0 and false.
__device__ inline void emit_image(const uint8_t* mask, int32_t patches, int64_t count, int64_t* index, uint8_t* keep,
                                  BlockShared& shared) {
    int32_t found = 0;
    for (int32_t base = 0; base < patches; base += blockDim.x) {
        const int32_t j = base + static_cast<int32_t>(threadIdx.x);
        const bool marked = j < patches && mask[j];
        unsigned long long total;
        const int32_t slot = found + static_cast<int32_t>(block_inclusive_sum(marked, total, shared)) - 1;
        if (marked && slot < count) {
            index[slot] = j;
            keep[slot] = 1;
        }
        found += static_cast<int32_t>(total);
    }
    for (int64_t slot = found + static_cast<int64_t>(threadIdx.x); slot < count; slot += blockDim.x) {
        index[slot] = 0;
        keep[slot] = 0;
    }
}

}  // namespace vitprune
