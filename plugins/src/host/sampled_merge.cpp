// SPDX-License-Identifier: Apache-2.0
#include "host/sampled_merge.h"

#include <numeric>

#include "host/attention_tiles.h"

namespace vitprune {
namespace {

// Rows [count, width] of keys summed over the heads and brought to unit length.
void unit_rows(const float* key, int64_t count, int64_t heads, int64_t width, float floor, float* out) {
    for (int64_t n = 0; n < count; ++n, key += heads * width, out += width) {
        std::copy(key, key + width, out);
        for (int64_t h = 1; h < heads; ++h) {
            for (int64_t c = 0; c < width; ++c) out[c] += key[h * width + c];
        }
        const float length = larger(norm_of(out, width), floor);
        for (int64_t c = 0; c < width; ++c) out[c] /= length;
    }
}

// out [rows, columns] of unit rows [rows, width] against columns, in panels.
struct Cosines {
    const float* rows;
    const float* across;
    int64_t count, width, columns;
    float* out;
};

[[gnu::always_inline]] inline void multiply(const Cosines& one) {
    tiles::product<8>(one.rows, one.width, one.across, one.count, one.width, one.columns, one.out, one.columns);
}

// The sum of every cosine is one chain of fused products in the order of the channels, as on the device. The tiles fuse where the
// processor can; an x86 without it gets there by the library's function.
#if defined(__x86_64__)
void multiply_plain(const Cosines& one) {
    constexpr int64_t step = tiles::kStep<8>;
    for (int64_t r = 0; r < one.count; ++r) {
        const float* panel = one.across;
        for (int64_t first = 0; first < one.columns; first += step, panel += one.width * step) {
            float* out = one.out + r * one.columns + first;
            std::fill(out, out + step, 0.0f);
            for (int64_t c = 0; c < one.width; ++c) {
                for (int64_t k = 0; k < step; ++k) out[k] = fused(one.rows[r * one.width + c], panel[c * step + k], out[k]);
            }
        }
    }
}
#else
void multiply_plain(const Cosines& one) { multiply(one); }
#endif
VP_AVX2 void multiply_avx2(const Cosines& one) { multiply(one); }
VP_AVX512 void multiply_avx512(const Cosines& one) { multiply(one); }

}  // namespace

Merging sampled_merging(const MergeImage& image, const std::vector<int32_t>& kept, const float* key, int64_t heads, int64_t width,
                        float floor) {
    Merging merging{std::vector<int64_t>(image.patches), {}, {kept.begin(), kept.end()}};
    std::iota(merging.into.begin(), merging.into.end(), 0);
    std::vector<uint8_t> stays(image.patches, 0);
    for (const int32_t slot : kept) stays[slot] = 1;
    std::vector<int64_t> leaving;
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        if (!stays[slot] && image.live(slot)) leaving.push_back(slot);
    }
    if (leaving.empty() || kept.empty()) return merging;
    std::vector<float> unit(image.patches * width);
    unit_rows(key, image.patches, heads, width, floor, unit.data());
    const int64_t count = static_cast<int64_t>(kept.size()), columns = tiles::rounded<8>(count);
    std::vector<float> staying(count * width), across(width * columns), rows(leaving.size() * width), cosines(leaving.size() * columns);
    for (int64_t k = 0; k < count; ++k) std::copy_n(unit.data() + kept[k] * width, width, staying.data() + k * width);
    tiles::pack_across<8>(staying.data(), width, width, count, across.data());
    for (size_t n = 0; n < leaving.size(); ++n) {
        std::copy_n(unit.data() + leaving[n] * width, width, rows.data() + n * width);
    }
    static const auto best = tiles::widest(multiply_plain, multiply_avx2, multiply_avx512);
    best({rows.data(), across.data(), static_cast<int64_t>(leaving.size()), width, columns, cosines.data()});
    for (size_t n = 0; n < leaving.size(); ++n) {
        const float* row = cosines.data() + n * columns;
        merging.into[leaving[n]] = kept[std::max_element(row, row + count) - row];
    }
    return merging;
}

}  // namespace vitprune
