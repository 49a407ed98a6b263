// SPDX-License-Identifier: Apache-2.0
//
// Collective operations of one thread block. The block size is a multiple of the warp size; every thread takes part.
#pragma once

#include <cstdint>

namespace vitprune {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Shared memory of the collectives.
struct BlockShared {
    unsigned long long warp_totals[kMaxWarps];
    unsigned int histogram[256];
    unsigned long long chosen_prefix;
    int chosen_rest;
};

struct Sum {
    __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a + b; }
};

struct Maximum {
    __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a > b ? a : b; }
};

// Every thread gets the combination of all values; both operations have the identity 0.
template <typename Operation>
__device__ unsigned long long block_reduce(unsigned long long value, Operation operation, BlockShared& shared) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        value = operation(value, __shfl_xor_sync(kFullWarp, value, offset));
    }
    const int warps = blockDim.x / kWarp;
    __syncthreads();
    if (threadIdx.x % kWarp == 0) shared.warp_totals[threadIdx.x / kWarp] = value;
    __syncthreads();
    value = 0;
    for (int warp = 0; warp < warps; ++warp) value = operation(value, shared.warp_totals[warp]);
    return value;
}

// Sum of the values of this thread and of those before it; `total` gets the sum over the block.
__device__ inline unsigned long long block_inclusive_sum(unsigned long long value, unsigned long long& total,
                                                         BlockShared& shared) {
    const int lane = threadIdx.x % kWarp;
    const int own_warp = threadIdx.x / kWarp;
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const unsigned long long before = __shfl_up_sync(kFullWarp, value, offset);
        if (lane >= offset) value += before;
    }
    __syncthreads();
    if (lane == kWarp - 1) shared.warp_totals[own_warp] = value;
    __syncthreads();
    total = 0;
    const int warps = blockDim.x / kWarp;
    for (int warp = 0; warp < warps; ++warp) {
        if (warp == own_warp) value += total;
        total += shared.warp_totals[warp];
    }
    return value;
}

// Ascending bitonic sort of a power-of-two number of keys in shared or global memory. A fixed network: the result
// depends on nothing but the keys.
__device__ inline void block_sort(unsigned long long* keys, int size) {
    for (int run = 2; run <= size; run *= 2) {
        for (int distance = run / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                const int low = 2 * pair - (pair & (distance - 1));
                const int high = low + distance;
                const unsigned long long a = keys[low];
                const unsigned long long b = keys[high];
                const bool ascending = (low & run) == 0;
                if ((a > b) == ascending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

}  // namespace vitprune
