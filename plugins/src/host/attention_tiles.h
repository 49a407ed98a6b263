// SPDX-License-Identifier: Apache-2.0
//
// Products of small matrices in registers and the softmax of a row, to be inlined into functions that exist once per kind of
// processor. Only for what decides nothing, or decides by its own sums: products and sums may be fused.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#define VP_AVX2 [[gnu::target("avx2,fma")]]
#define VP_AVX512 [[gnu::target("avx512f,avx512vl,avx512dq,avx2,fma")]]
#else
#define VP_AVX2
#define VP_AVX512
#endif

namespace vitprune::tiles {

constexpr int64_t kLanes = 8;
constexpr int64_t kStep = 2 * kLanes;  // columns of a tile
constexpr int64_t kRows = 6;           // rows of a tile: 12 accumulators, as many as AVX2 has registers for

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
using Bits = int32_t __attribute__((vector_size(kLanes * sizeof(float))));

constexpr int64_t rounded(int64_t size) { return (size + kStep - 1) / kStep * kStep; }

[[gnu::always_inline]] inline Lanes& at(float* place) { return *reinterpret_cast<Lanes*>(place); }

// out[r, :] = sum over n of a[r, n] * b[n, :] for Rows rows and kStep columns.
template <int Rows>
[[gnu::always_inline]] inline void tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, float* out,
                                        int64_t out_stride) {
    Lanes low[Rows], high[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) low[r] = high[r] = Lanes{};
    for (int64_t n = 0; n < inner; ++n) {
        const Lanes first = *reinterpret_cast<const Lanes*>(b + n * b_stride);
        const Lanes second = *reinterpret_cast<const Lanes*>(b + n * b_stride + kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            const float factor = a[r * a_stride + n];
            low[r] += factor * first;
            high[r] += factor * second;
        }
    }
    for (int r = 0; r < Rows; ++r) {
        at(out + r * out_stride) = low[r];
        at(out + r * out_stride + kLanes) = high[r];
    }
}

// out [rows, columns] = a [rows, inner] * b [inner, columns]; columns a multiple of kStep.
[[gnu::always_inline]] inline void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t rows, int64_t inner,
                                           int64_t columns, float* out, int64_t out_stride) {
    for (int64_t c = 0; c < columns; c += kStep) {
        int64_t r = 0;
        for (; r + kRows <= rows; r += kRows) tile<kRows>(a + r * a_stride, a_stride, b + c, b_stride, inner, out + r * out_stride + c, out_stride);
        const auto rest = [&](auto tiled) { tiled(a + r * a_stride, a_stride, b + c, b_stride, inner, out + r * out_stride + c, out_stride); };
        switch (rows - r) {
            case 1: rest(tile<1>); break;
            case 2: rest(tile<2>); break;
            case 3: rest(tile<3>); break;
            case 4: rest(tile<4>); break;
            case 5: rest(tile<5>); break;
        }
    }
}

// e^x for x <= 0, within 2 units in the last place; below e^-87 it stays there.
[[gnu::always_inline]] inline Lanes exponential(Lanes x) {
    x = x < -87.0f ? Lanes{} - 87.0f : x;
    const Lanes shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number in the low bits
    const Lanes n = shifted - 12582912.0f;
    const Lanes r = n * -1.42860677e-6f + (n * -0.693145752f + x);
    Lanes p = Lanes{} + 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * reinterpret_cast<Lanes>((reinterpret_cast<Bits>(shifted) + 127) << 23);
}

// Logits [keys] of one query to weights, unnormalised; returns one over their sum. The row has room for whole steps.
[[gnu::always_inline]] inline float soften(float* row, const float* bias, int64_t keys, float scale) {
    const int64_t columns = rounded(keys);
    std::fill(row + keys, row + columns, -INFINITY);
    for (int64_t n = 0; bias != nullptr && n < keys; ++n) row[n] = row[n] * scale + bias[n];
    const float factor = bias != nullptr ? 1.0f : scale;
    Lanes top = Lanes{} - INFINITY;
    for (int64_t n = 0; n < columns; n += kLanes) {
        const Lanes here = at(row + n) * factor;
        top = here > top ? here : top;
        at(row + n) = here;
    }
    float largest = top[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) largest = std::max(largest, top[lane]);
    if (std::all_of(row, row + keys, [](float logit) { return logit == -INFINITY; })) {  // every key is hidden; NaN is no such logit
        std::fill(row, row + columns, 0.0f);
        return 0.0f;
    }
    Lanes sums{};
    for (int64_t n = 0; n < columns; n += kLanes) {
        const Lanes here = exponential(at(row + n) - largest);
        sums += here;
        at(row + n) = here;
    }
    float total = 0.0f;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += sums[lane];
    return 1.0f / total;
}

// The form of a function for the widest vectors that this processor has: the library is built once and must run on all of them.
template <typename Function>
Function* widest(Function* plain, [[maybe_unused]] Function* avx2, [[maybe_unused]] Function* avx512) {
#if defined(__x86_64__)
    const bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool five = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return two && five ? avx512 : two ? avx2 : plain;
#else
    return plain;
#endif
}

}  // namespace vitprune::tiles
