// SPDX-License-Identifier: Apache-2.0
//
// Sums of a score, in the order that the host has: one partial sum of a dot product per lane of a warp, one of the softmax
// denominator per thread of a block.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "cuda/block.cuh"
#include "element.h"

namespace vitprune {

constexpr int kScoreThreads = kSoftmaxStrands;

template <typename One, typename Other>
__device__ inline float warp_dot(const One* a, const Other* b, int32_t width) {
    float strand = 0.0f;
    for (int32_t i = threadIdx.x % kWarp; i < width; i += kWarp) strand = fused(widen(a[i]), widen(b[i]), strand);
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        strand = add(strand, __shfl_down_sync(kFullWarp, strand, offset));
    }
    return strand;  // complete in lane 0
}

// Turns one head's logits into attention.
__device__ inline void softmax(float* row, int32_t keys, float* partial) {
    float top = -INFINITY;
    for (int32_t n = threadIdx.x; n < keys; n += kScoreThreads) top = fmaxf(top, row[n]);
    partial[threadIdx.x] = top;
    __syncthreads();
    for (int half = kScoreThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] = fmaxf(partial[threadIdx.x], partial[threadIdx.x + half]);
        __syncthreads();
    }
    top = partial[0];
    __syncthreads();
    float strand = 0.0f;
    for (int32_t n = threadIdx.x; n < keys; n += kScoreThreads) {
        const float value = row[n] == -INFINITY ? 0.0f : exp_nonpositive(add(row[n], -top));
        row[n] = value;
        strand = add(strand, value);
    }
    partial[threadIdx.x] = strand;
    __syncthreads();
    for (int half = kScoreThreads / 2; half > 0; half /= 2) {
        if (static_cast<int>(threadIdx.x) < half) partial[threadIdx.x] = add(partial[threadIdx.x], partial[threadIdx.x + half]);
        __syncthreads();
    }
    const float total = partial[0];
    for (int32_t n = threadIdx.x; n < keys; n += kScoreThreads) row[n] = divide(row[n], total);
}

}  // namespace vitprune
