// SPDX-License-Identifier: Apache-2.0
//
// Every decision and every rounding of the operators, once, for host and device. Kernel and host twin differ only in
// how they walk over tokens; because all sums that decide are integers and all float sums have a fixed order, the two
// agree bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VP_HD __host__ __device__ inline
#elif defined(__GNUC__)
#define VP_HD __attribute__((always_inline)) inline  // into functions that exist once per kind of processor, too
#else
#define VP_HD inline
#endif

namespace vitprune {

constexpr float kWeightOne = 1073741824.0f;  // 2^30, the weight of the highest score
constexpr int kSoftmaxStrands = 256;         // partial sums of the softmax denominator
constexpr int kDotStrands = 32;              // partial sums of a dot product: one per lane of a warp

// Rounded float operations. On the device the intrinsics keep the compiler from fusing a product and a sum, which the
// host build is told not to do either.
VP_HD float add(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

VP_HD float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

VP_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
}

VP_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

VP_HD float square_root(float a) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(a);
#else
    return std::sqrt(a);
#endif
}

VP_HD uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

VP_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// e^x for x <= 0, below 2 units in the last place; 0 under -87, NaN stays NaN. Not the library's expf, because host and
// device libraries round it differently. Without a branch, so that a loop over it becomes vector code.
VP_HD float exp_nonpositive(float x) {
    const bool computed = x >= -87.0f;
    const float safe = computed ? x : 0.0f;
    const float n = rintf(mul(safe, 1.44269504f));
    const float r = fused(n, -1.42860677e-6f, fused(n, -0.693145752f, safe));
    float p = 1.0f / 5040.0f;
    p = fused(p, r, 1.0f / 720.0f);
    p = fused(p, r, 1.0f / 120.0f);
    p = fused(p, r, 1.0f / 24.0f);
    p = fused(p, r, 1.0f / 6.0f);
    p = fused(p, r, 0.5f);
    p = fused(p, r, 1.0f);
    p = fused(p, r, 1.0f);
    const float value = mul(p, float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23));
    return computed ? value : x != x ? x : 0.0f;
}

// A score as it enters the sampling: negative values and NaN count as nothing.
VP_HD float clean_score(float score) { return score > 0.0f ? score : 0.0f; }

// r_j; `top` is the largest clean score of the image's valid tokens, 0 when no score is positive.
VP_HD float relative_score(float score, float top) { return top > 0.0f ? divide(clean_score(score), top) : 0.0f; }

// q_j >= 1 of a valid token. NaN (an infinite score over an infinite maximum) weighs as little as possible.
VP_HD int64_t weight(float relative) {
    const float scaled = mul(relative, kWeightOne);
    return scaled >= 1.0f ? static_cast<int64_t>(scaled) : 1;
}

// Sorting by this key is sorting by (r ascending, index ascending); it carries both. NaN comes last.
VP_HD uint64_t ascending_key(float relative, int32_t index) {
    const uint32_t bits = relative == relative ? bits_of(relative) : 0x7fc00000u;
    return static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(index);
}

VP_HD int32_t key_index(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }

VP_HD int64_t key_weight(uint64_t key) { return weight(float_of(static_cast<uint32_t>(key >> 32))); }

// 48-bit key that is larger for the token to prefer when an image overflows its capacity: higher score first, then lower
// index. Both zeros are equal and NaN is worst.
constexpr int kPreferenceBits = 48;
VP_HD uint64_t preference(float score, int32_t index) {
    uint32_t order = 0;
    if (score == score) {
        const uint32_t bits = score == 0.0f ? 0u : bits_of(score);
        order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    }
    return static_cast<uint64_t>(order) << 16 | static_cast<uint64_t>(0xffff - index);
}

VP_HD int32_t preferred_index(uint64_t preference) { return 0xffff - static_cast<int32_t>(preference & 0xffffu); }

// Of a preference that is of no NaN; a zero has lost its sign.
VP_HD float preferred_score(uint64_t preference) {
    const uint32_t order = static_cast<uint32_t>(preference >> 16);
    return float_of(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

// The sampling points of one image, seen from twice the cumulated weights.
struct Grid {
    bool official;
    uint64_t samples;  // S
    uint64_t total;    // T
    uint64_t start;    // s, official grid only
};

// F(e): how many sampling points lie at or below twice-midpoint e. The largest product is below 2^62.
VP_HD int32_t points_below(const Grid& grid, uint64_t edge) {
    uint64_t points;
    if (!grid.official) {
        points = (grid.samples * edge + grid.total) / (2 * grid.total);
    } else if (edge < 2 * grid.start) {
        points = 0;
    } else {
        const uint64_t span = 2 * (grid.total - grid.start);
        points = (grid.samples - 1) * (edge - 2 * grid.start) / (span > 0 ? span : 1) + 1;
    }
    return static_cast<int32_t>(points < grid.samples ? points : grid.samples);
}

}  // namespace vitprune
