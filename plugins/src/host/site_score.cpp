// SPDX-License-Identifier: Apache-2.0
//
// Token rows are walked in the order they lie in memory, all heads of a row at once. A dot product has one partial sum per lane of a
// warp and the softmax denominator one per thread of a block, as on the device, and both are combined by halving.
#include <algorithm>
#include <cmath>
#include <limits>

#include "host/dot.h"
#include "host/prune_site.h"
#include "host/typed_rows.h"

namespace vitprune {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr int64_t kRowsAtOnce = 64;

// Of `count` rows the dot products with `other`, one per head: out[h * stride + row]. other null: with themselves.
VP_WIDE void dots(const float* rows, const float* other, int64_t heads, int64_t head_width, int64_t count, float* out,
                  int64_t stride) {
    for (int64_t n = 0; n < count; ++n) {
        for (int64_t h = 0; h < heads; ++h) {
            const float* row = rows + (n * heads + h) * head_width;
            out[h * stride + n] = dot(row, other == nullptr ? row : other + h * head_width, head_width);
        }
    }
}

VP_WIDE void softmax(float* row, int64_t keys) {
    float top = kLowest;
    for (int64_t n = 0; n < keys; ++n) top = row[n] > top ? row[n] : top;
    float partial[kSoftmaxStrands] = {};
    for (int64_t base = 0; base < keys; base += kSoftmaxStrands) {
        const int64_t here = std::min<int64_t>(kSoftmaxStrands, keys - base);
        for (int64_t i = 0; i < here; ++i) {
            const float logit = row[base + i];
            row[base + i] = logit == kLowest ? 0.0f : exp_nonpositive(add(logit, -top));
            partial[i] = add(partial[i], row[base + i]);
        }
    }
    const float total = combined(partial);
    for (int64_t n = 0; n < keys; ++n) row[n] = divide(row[n], total);
}

// Attention [H,N] and squared lengths [H,N] of one image.
struct Scratch {
    std::vector<float> attention, squares;
};

void score_image(const SiteParameters& parameters, const SiteShape& shape, const uint8_t* valid, const float* bias, Scratch& scratch,
                 float* score) {
    const int64_t tokens = shape.tokens();
    float* attention = scratch.attention.data();
    const float* squares = scratch.squares.data();
    for (int32_t h = 0; h < shape.heads; ++h) {
        float* row = attention + h * tokens;
        for (int64_t n = 0; bias != nullptr && n < tokens; ++n) row[n] = add(row[n], bias[n]);
        for (int32_t j = 0; valid != nullptr && j < shape.patches; ++j) {
            if (!valid[j]) row[shape.prefix + j] = kLowest;
        }
        softmax(row, tokens);
    }
    for (int32_t j = 0; j < shape.patches; ++j) {
        const int64_t at = shape.prefix + j;
        const float all = patch_score(
            parameters.form, shape.heads, [=](int32_t h) { return attention[h * tokens + at]; },
            [=](int32_t h) { return squares[h * tokens + at]; });
        score[j] = valid == nullptr || valid[j] ? all : 0.0f;
    }
}

}  // namespace

void site_score(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, float* score, const ForEach& each) {
    const int64_t tokens = shape.tokens(), row = static_cast<int64_t>(shape.heads) * shape.head_width;
    const int64_t pieces = (tokens + kRowsAtOnce - 1) / kRowsAtOnce;
    const bool values = reads_value(parameters.form);
    std::vector<Scratch> scratch(shape.batch);
    for (Scratch& one : scratch) {
        one.attention.resize(shape.heads * tokens);
        one.squares.resize(values ? shape.heads * tokens : 0);
    }
    each(shape.batch * pieces, [&](size_t piece) {
        const int64_t b = piece / pieces, first = piece % pieces * kRowsAtOnce, last = std::min(first + kRowsAtOnce, tokens);
        const int64_t from = (b * tokens + first) * row, count = last - first;
        std::vector<float> own, other;
        const float* query = as_floats(in.query, b * in.query_rows * row, row, other);
        dots(as_floats(in.key, from, count * row, own), query, shape.heads, shape.head_width, count,
             scratch[b].attention.data() + first, tokens);
        if (values) {
            dots(as_floats(in.value, from, count * row, own), nullptr, shape.heads, shape.head_width, count,
                 scratch[b].squares.data() + first, tokens);
        }
    });
    each(shape.batch, [&](size_t b) {
        const uint8_t* valid = in.valid == nullptr ? nullptr : in.valid + b * shape.patches;
        const float* bias = in.bias == nullptr ? nullptr : in.bias + b * tokens;
        score_image(parameters, shape, valid, bias, scratch[b], score + b * shape.patches);
    });
}

}  // namespace vitprune
