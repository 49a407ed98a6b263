// SPDX-License-Identifier: Apache-2.0
#include "host/sketch_products.h"

#include <vector>

#include "host/attention_tiles.h"

namespace vitprune {
namespace {

constexpr int64_t kBlock = tiles::kWidestStep;  // rows at a time: a whole number of panels, whatever their width

struct Sketching {
    const float *rows, *signs;
    int64_t count, width, sums;
    float *sketch, *panels, *block, *gram;  // [count, sums], panels of its transpose, [kBlock, count rounded up], [count, count]
};

[[gnu::always_inline]] inline void sum_channels(const Sketching& one) {
    const float* row = one.rows;
    float* out = one.sketch;
    for (int64_t n = 0; n < one.count; ++n, row += one.width, out += one.sums) {
        for (int64_t c = 0; c < one.sums; ++c) out[c] = c < one.width ? row[c] * one.signs[c] : 0.0f;
        for (int64_t from = one.sums; from < one.width; from += one.sums) {
            const int64_t here = std::min(one.sums, one.width - from);
            for (int64_t c = 0; c < here; ++c) out[c] += row[from + c] * one.signs[from + c];
        }
    }
}

// Columns from the block's own on; what lies in front of them are earlier blocks, mirrored.
template <int Count>
[[gnu::always_inline]] inline void multiply(const Sketching& one) {
    sum_channels(one);
    tiles::pack_across<Count>(one.sketch, one.sums, one.sums, one.count, one.panels);
    for (int64_t first = 0; first < one.count; first += kBlock) {
        const int64_t rows = std::min(kBlock, one.count - first), behind = one.count - first, stride = tiles::rounded<Count>(behind);
        tiles::product<Count>(one.sketch + first * one.sums, one.sums, one.panels + first * one.sums, rows, one.sums, behind, one.block, stride);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < r; ++c) one.block[r * stride + c] = one.block[c * stride + r];
            std::copy_n(one.block + r * stride, behind, one.gram + (first + r) * one.count + first);
        }
        for (int64_t c = rows; c < behind; ++c) {
            float* mirrored = one.gram + (first + c) * one.count + first;
            for (int64_t r = 0; r < rows; ++r) mirrored[r] = one.block[r * stride + c];
        }
    }
}

void multiply_plain(const Sketching& one) { multiply<8>(one); }
VP_AVX2 void multiply_avx2(const Sketching& one) { multiply<8>(one); }
VP_AVX512 void multiply_avx512(const Sketching& one) { multiply<16>(one); }

}  // namespace

void sketch_products(const float* rows, int64_t count, int64_t width, const float* signs, int64_t sums, float* gram) {
    static thread_local std::vector<float> sketch, panels, block;  // grow to the largest image that their thread has seen
    sketch.resize(count * sums);
    panels.resize(tiles::panel_floats(sums, count));
    block.resize(tiles::panel_floats(kBlock, count));
    static const auto best = tiles::widest(multiply_plain, multiply_avx2, multiply_avx512);
    best({rows, signs, count, width, sums, sketch.data(), panels.data(), block.data(), gram});
}

}  // namespace vitprune
