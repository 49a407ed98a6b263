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

constexpr int64_t kRows = 6;        // rows of a tile: with two vectors each 12 accumulators, as many as AVX2 has registers for
constexpr int64_t kWidestStep = 32;  // columns of the widest tile: what memory is laid out for

// A vector of floats, a tile's columns are two of them; 8 lanes are AVX2's, 16 AVX-512's.
template <int Count>
struct Vector {
    typedef float type __attribute__((vector_size(Count * sizeof(float)), aligned(4), may_alias));
};
template <int Count>
using Lanes = typename Vector<Count>::type;

template <int Count>
constexpr int64_t kStep = 2 * Count;

template <int Count>
constexpr int64_t rounded(int64_t size) {
    return (size + kStep<Count> - 1) / kStep<Count> * kStep<Count>;
}

// Floats that a matrix [inner, columns] takes in panels of any width.
constexpr int64_t panel_floats(int64_t inner, int64_t columns) { return inner * rounded<kWidestStep / 2>(columns); }

template <int Count>
[[gnu::always_inline]] inline Lanes<Count>& at(float* place) {
    return *reinterpret_cast<Lanes<Count>*>(place);
}

// The second factor of a product lies in panels: [columns / step, inner, step], so that a tile reads memory straight on. Columns behind
// the last one are zero.

// Column n of [inner, columns] is row n of `rows`.
template <int Count>
[[gnu::always_inline]] inline void pack_across(const float* rows, int64_t stride, int64_t inner, int64_t columns, float* panels) {
    constexpr int64_t step = kStep<Count>;
    for (int64_t from = 0; from < columns; from += step, panels += inner * step) {
        const int64_t here = std::min(step, columns - from);
        if (here < step) std::fill_n(panels, inner * step, 0.0f);
        for (int64_t n = 0; n < here; ++n) {
            for (int64_t c = 0; c < inner; ++c) panels[c * step + n] = rows[(from + n) * stride + c];
        }
    }
}

// Row n of [inner, columns] is row n of `rows`.
template <int Count>
[[gnu::always_inline]] inline void pack_along(const float* rows, int64_t stride, int64_t inner, int64_t columns, float* panels) {
    constexpr int64_t step = kStep<Count>;
    for (int64_t from = 0; from < columns; from += step, panels += inner * step) {
        const int64_t here = std::min(step, columns - from);
        if (here < step) std::fill_n(panels, inner * step, 0.0f);
        for (int64_t n = 0; n < inner; ++n) {
            for (int64_t c = 0; c < here; ++c) panels[n * step + c] = rows[n * stride + from + c];
        }
    }
}

// out[r, :] = sum over n of a[r, n] * panel[n, :] for Rows rows.
template <int Count, int Rows>
[[gnu::always_inline]] inline void tile(const float* a, int64_t a_stride, const float* panel, int64_t inner, float* out, int64_t out_stride) {
    Lanes<Count> low[Rows], high[Rows];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) low[r] = high[r] = Lanes<Count>{};
    for (int64_t n = 0; n < inner; ++n) {
        const Lanes<Count> first = *reinterpret_cast<const Lanes<Count>*>(panel + n * kStep<Count>);
        const Lanes<Count> second = *reinterpret_cast<const Lanes<Count>*>(panel + n * kStep<Count> + Count);
#pragma GCC unroll 6
        for (int r = 0; r < Rows; ++r) {
            const float factor = a[r * a_stride + n];
            low[r] += factor * first;
            high[r] += factor * second;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
        at<Count>(out + r * out_stride) = low[r];
        at<Count>(out + r * out_stride + Count) = high[r];
    }
}

// The last rows, fewer than a tile has.
template <int Count, int Rows>
[[gnu::always_inline]] inline void short_tile(int64_t rows, const float* a, int64_t a_stride, const float* panel, int64_t inner, float* out,
                                              int64_t out_stride) {
    if constexpr (Rows > 0) {
        if (rows == Rows) return tile<Count, Rows>(a, a_stride, panel, inner, out, out_stride);
        short_tile<Count, Rows - 1>(rows, a, a_stride, panel, inner, out, out_stride);
    }
}

// out [rows, columns rounded up] = a [rows, inner] * panels.
template <int Count>
[[gnu::always_inline]] inline void product(const float* a, int64_t a_stride, const float* panels, int64_t rows, int64_t inner,
                                           int64_t columns, float* out, int64_t out_stride) {
    for (int64_t c = 0; c < columns; c += kStep<Count>, panels += inner * kStep<Count>) {
        int64_t r = 0;
        for (; r + kRows <= rows; r += kRows) tile<Count, kRows>(a + r * a_stride, a_stride, panels, inner, out + r * out_stride + c, out_stride);
        short_tile<Count, kRows - 1>(rows - r, a + r * a_stride, a_stride, panels, inner, out + r * out_stride + c, out_stride);
    }
}

// e^x for x <= 0, within 2 units in the last place; below e^-87 it stays there.
template <typename Vector>
[[gnu::always_inline]] inline Vector exponential(Vector x) {
    using Bits = decltype(x < x);
    x = x < -87.0f ? Vector{} - 87.0f : x;
    const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number in the low bits
    const Vector n = shifted - 12582912.0f;
    const Vector r = n * -1.42860677e-6f + (n * -0.693145752f + x);
    Vector p = Vector{} + 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * reinterpret_cast<Vector>((reinterpret_cast<Bits>(shifted) + 127) << 23);
}

// Logits [keys] of one query to weights, unnormalised; returns one over their sum. The row has room for whole steps.
template <int Count>
[[gnu::always_inline]] inline float soften(float* row, const float* bias, int64_t keys) {
    const int64_t columns = rounded<Count>(keys);
    for (int64_t n = 0; bias != nullptr && n < keys; ++n) row[n] += bias[n];
    std::fill(row + keys, row + columns, -INFINITY);
    Lanes<Count> top = Lanes<Count>{} - INFINITY;
    for (int64_t n = 0; n < columns; n += Count) top = at<Count>(row + n) > top ? at<Count>(row + n) : top;
    float largest = top[0];
    for (int lane = 1; lane < Count; ++lane) largest = std::max(largest, top[lane]);
    const auto hidden = [](float logit) { return logit == -INFINITY; };  // NaN is no such logit
    if (hidden(largest) && std::all_of(row, row + keys, hidden)) {
        std::fill(row, row + columns, 0.0f);
        return 0.0f;
    }
    Lanes<Count> sums{};
    for (int64_t n = 0; n < columns; n += Count) {
        const Lanes<Count> here = exponential(at<Count>(row + n) - largest);
        sums += here;
        at<Count>(row + n) = here;
    }
    float total = 0.0f;
    for (int lane = 0; lane < Count; ++lane) total += sums[lane];
    return 1.0f / total;
}

// The form of a function for the widest vectors that this processor has: the library is built once and must run on all of them.
// With VP_PLAIN_TILES it is the plain one, for tests.
template <typename Function>
Function* widest(Function* plain, [[maybe_unused]] Function* avx2, [[maybe_unused]] Function* avx512) {
#if defined(__x86_64__) && !defined(VP_PLAIN_TILES)
    const bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool five = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return two && five ? avx512 : two ? avx2 : plain;
#else
    return plain;
#endif
}

}  // namespace vitprune::tiles
