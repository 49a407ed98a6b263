// SPDX-License-Identifier: Apache-2.0
//
// Dot products of the host, one partial sum per lane of a warp as on the device, combined by halving. To be inlined into functions
// that exist once per kind of processor.
#pragma once

#include "arithmetic.h"
#include "host/dispatch.h"

namespace vitprune {

template <int Half>
VP_INLINE void halve(float* partial) {
    for (int i = 0; i < Half; ++i) partial[i] = add(partial[i], partial[i + Half]);
    if constexpr (Half > 1) halve<Half / 2>(partial);
}

template <int Count>
VP_INLINE float combined(float (&partial)[Count]) {
    halve<Count / 2>(partial);
    return partial[0];
}

VP_INLINE float dot(const float* a, const float* b, int64_t width) {
    float partial[kDotStrands] = {};
    int64_t i = 0;
    for (; i + kDotStrands <= width; i += kDotStrands) {
        for (int lane = 0; lane < kDotStrands; ++lane) partial[lane] = fused(a[i + lane], b[i + lane], partial[lane]);
    }
    for (int lane = 0; i + lane < width; ++lane) partial[lane] = fused(a[i + lane], b[i + lane], partial[lane]);
    return combined(partial);
}

}  // namespace vitprune
