// SPDX-License-Identifier: Apache-2.0
#include "host/column_score.h"

#include <vector>

#include "host/attention_tiles.h"

namespace vitprune {
namespace {

constexpr int64_t kStretch = 8;  // steps of queries in a piece of work
constexpr int kCount = 8;        // floats in a vector

// Queries of one image [tokens, heads * width], and the keys of every head as columns, in panels.
struct Image {
    const float* query;
    const float* across;
    int64_t tokens, heads, width;
};

// Column sums of the largest attention among the heads, of kRows queries from `first` on.
[[gnu::always_inline]] inline void sum_columns(const Image& image, int64_t first, float* logits, float* top, float* sums) {
    const int64_t columns = tiles::rounded<kCount>(image.tokens), stride = image.heads * image.width;
    const int64_t rows = std::min(tiles::kRows, image.tokens - first);
    std::fill(top, top + rows * columns, 0.0f);
    for (int64_t h = 0; h < image.heads; ++h) {
        tiles::product<kCount>(image.query + first * stride + h * image.width, stride, image.across + h * image.width * columns, rows,
                               image.width, columns, logits, columns);
        for (int64_t r = 0; r < rows; ++r) {
            const float factor = tiles::soften<kCount>(logits + r * columns, nullptr, image.tokens);
            for (int64_t n = 0; n < columns; n += kCount) {
                const tiles::Lanes<kCount> here = tiles::at<kCount>(logits + r * columns + n) * factor;
                tiles::Lanes<kCount>& best = tiles::at<kCount>(top + r * columns + n);
                best = here > best ? here : best;
            }
        }
    }
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t n = 0; n < columns; n += kCount) tiles::at<kCount>(sums + n) += tiles::at<kCount>(top + r * columns + n);
    }
}

void sum_plain(const Image& image, int64_t first, float* logits, float* top, float* sums) {
    sum_columns(image, first, logits, top, sums);
}

VP_AVX2 void sum_avx2(const Image& image, int64_t first, float* logits, float* top, float* sums) {
    sum_columns(image, first, logits, top, sums);
}

VP_AVX512 void sum_avx512(const Image& image, int64_t first, float* logits, float* top, float* sums) {
    sum_columns(image, first, logits, top, sums);
}

// Largest value among the heads, summed over the channels, of one row.
float content(const float* value, int64_t heads, int64_t width) {
    float sum = 0.0f;
    for (int64_t c = 0; c < width; ++c) {
        float best = value[c];
        for (int64_t h = 1; h < heads; ++h) best = std::max(best, value[h * width + c]);
        sum += best;
    }
    return sum;
}

}  // namespace

void column_score(const ColumnAttention& all, float* score, const ForEach& each) {
    const int64_t tokens = all.prefix + all.patches, columns = tiles::rounded<kCount>(tokens), stride = all.heads * all.width;
    const int64_t pieces = (tokens + tiles::kRows * kStretch - 1) / (tiles::kRows * kStretch);
    static const auto sum = tiles::widest(sum_plain, sum_avx2, sum_avx512);
    std::vector<float> across(all.batch * stride * columns), sums(all.batch * pieces * columns);
    each(all.batch * all.heads, [&](size_t unit) {
        const int64_t b = unit / all.heads, h = unit % all.heads;
        float* to = across.data() + (b * stride + h * all.width) * columns;
        const float* key = all.key + b * tokens * stride + h * all.width;
        tiles::pack_across<kCount>(key, stride, all.width, tokens, to);
    });
    each(all.batch * pieces, [&](size_t unit) {
        const int64_t b = unit / pieces, piece = unit % pieces;
        const Image image{all.query + b * tokens * stride, across.data() + b * stride * columns, tokens, all.heads, all.width};
        std::vector<float> logits(tiles::kRows * columns), top(tiles::kRows * columns);
        const int64_t last = std::min(tokens, (piece + 1) * tiles::kRows * kStretch);
        for (int64_t first = piece * tiles::kRows * kStretch; first < last; first += tiles::kRows) {
            sum(image, first, logits.data(), top.data(), sums.data() + unit * columns);
        }
    });
    each(all.batch, [&](size_t b) {
        std::vector<float> column(all.patches), inside(all.patches);
        for (int64_t piece = 0; piece < pieces; ++piece) {
            const float* part = sums.data() + (b * pieces + piece) * columns + all.prefix;
            for (int64_t j = 0; j < all.patches; ++j) column[j] += part[j];
        }
        for (int64_t j = 0; j < all.patches; ++j) {
            inside[j] = content(all.value + (b * tokens + all.prefix + j) * stride, all.heads, all.width);
        }
        const float largest = *std::max_element(column.begin(), column.end());
        const float top = *std::max_element(inside.begin(), inside.end());
        float total = 0.0f;
        for (float& one : inside) total += one = std::exp(one - top);
        for (int64_t j = 0; j < all.patches; ++j) score[b * all.patches + j] = column[j] / largest + inside[j] / total;
    });
}

}  // namespace vitprune
