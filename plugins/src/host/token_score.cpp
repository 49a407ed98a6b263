// SPDX-License-Identifier: Apache-2.0
//
// The sums follow the kernel's order: a dot product has one partial sum per lane of a warp, the softmax denominator one
// per thread of a block, and both are combined by halving.
#include "host/token_score.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "arithmetic.h"
#include "element.h"

namespace vitprune {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

template <int Count>
float combine(float (&partial)[Count]) {
    for (int half = Count / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) partial[i] = add(partial[i], partial[i + half]);
    }
    return partial[0];
}

template <typename Element>
float dot(const Element* a, const Element* b, int32_t width) {
    float partial[kDotStrands] = {};
    for (int32_t i = 0; i < width; ++i) {
        float& strand = partial[i % kDotStrands];
        strand = fused(widen(a[i]), widen(b[i]), strand);
    }
    return combine(partial);
}

// Turns logits into attention in place. An excluded key holds minus infinity.
void softmax(std::vector<float>& row) {
    float top = kLowest;
    for (const float logit : row) top = std::fmax(top, logit);
    float partial[kSoftmaxStrands] = {};
    for (size_t j = 0; j < row.size(); ++j) {
        row[j] = row[j] == kLowest ? 0.0f : exp_nonpositive(add(row[j], -top));
        float& strand = partial[j % kSoftmaxStrands];
        strand = add(strand, row[j]);
    }
    const float total = combine(partial);
    for (float& value : row) value = divide(value, total);
}

template <typename Element>
void score_batch(const ScoreParameters& parameters, const Element* query, const Element* key, const Element* value,
                 const uint8_t* valid, const ScoreShape& shape, float* score) {
    const float scale = score_scale(parameters, shape.width);
    const bool pooled = parameters.form == Form::kPooled;
    const int32_t keys = shape.keys();
    std::vector<float> attention(keys);
    std::vector<float> squares(shape.patches);
    for (int32_t b = 0; b < shape.batch; ++b, score += shape.patches, valid += shape.patches) {
        std::fill(score, score + shape.patches, 0.0f);
        std::fill(squares.begin(), squares.end(), 0.0f);
        for (int32_t h = 0; h < shape.heads; ++h, query += shape.width) {
            for (int32_t n = 0; n < keys; ++n, key += shape.width) {
                const bool excluded = n >= shape.prefix && !valid[n - shape.prefix];
                attention[n] = excluded ? kLowest : mul(scale, dot(query, key, shape.width));
            }
            softmax(attention);
            value += static_cast<int64_t>(shape.prefix) * shape.width;
            for (int32_t j = 0; j < shape.patches; ++j, value += shape.width) {
                const float square = dot(value, value, shape.width);
                const float part = attention[shape.prefix + j];
                score[j] = add(score[j], pooled ? part : mul(part, square_root(square)));
                squares[j] = add(squares[j], square);
            }
        }
        for (int32_t j = 0; j < shape.patches; ++j) {
            if (pooled) score[j] = mul(score[j], square_root(squares[j]));
            if (!valid[j]) score[j] = 0.0f;
        }
    }
}

}  // namespace

void token_score(const ScoreParameters& parameters, int32_t dtype, const void* query, const void* key, const void* value,
                 const uint8_t* valid, const ScoreShape& shape, float* score) {
    if (dtype == VP_FLOAT32) {
        score_batch(parameters, static_cast<const float*>(query), static_cast<const float*>(key),
                    static_cast<const float*>(value), valid, shape, score);
    } else if (dtype == VP_FLOAT16) {
        score_batch(parameters, static_cast<const Half*>(query), static_cast<const Half*>(key),
                    static_cast<const Half*>(value), valid, shape, score);
    } else {
        score_batch(parameters, static_cast<const Bfloat16*>(query), static_cast<const Bfloat16*>(key),
                    static_cast<const Bfloat16*>(value), valid, shape, score);
    }
}

}  // namespace vitprune
