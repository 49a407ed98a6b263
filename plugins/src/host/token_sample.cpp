// SPDX-License-Identifier: Apache-2.0
#include "host/token_sample.h"

#include <algorithm>
#include <functional>

#include "arithmetic.h"

namespace vitprune {
namespace {

// Sort keys of the valid tokens, in index order.
std::vector<uint64_t> valid_keys(const float* score, const uint8_t* valid, int32_t patches) {
    float top = 0.0f;
    for (int32_t j = 0; j < patches; ++j) {
        if (valid[j]) top = std::max(top, clean_score(score[j]));
    }
    std::vector<uint64_t> keys;
    keys.reserve(patches);
    for (int32_t j = 0; j < patches; ++j) {
        if (valid[j]) keys.push_back(ascending_key(relative_score(score[j], top), j));
    }
    return keys;
}

Grid sampling_grid(const SampleParameters& parameters, const std::vector<uint64_t>& keys) {
    Grid grid{parameters.mode == Mode::kOfficial, static_cast<uint64_t>(parameters.samples), 0, 0};
    for (size_t k = 0; k < keys.size(); ++k) {
        grid.total += key_weight(keys[k]);
        if (k <= 1) grid.start = grid.total;
    }
    return grid;
}

// Tokens whose stretch of the cumulated weights holds a sampling point.
std::vector<int32_t> sampled(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t patches) {
    std::vector<uint64_t> keys = valid_keys(score, valid, patches);
    if (parameters.mode == Mode::kOfficial) std::sort(keys.begin(), keys.end());
    const Grid grid = sampling_grid(parameters, keys);
    std::vector<int32_t> kept;
    uint64_t cumulated = 0;
    int32_t lower = 0;
    for (size_t k = 0; k < keys.size(); ++k) {
        cumulated += key_weight(keys[k]);
        const bool last = k + 1 == keys.size();
        const int32_t upper = last ? parameters.samples : points_below(grid, 2 * cumulated + key_weight(keys[k + 1]));
        if (upper > lower) kept.push_back(key_index(keys[k]));
        lower = upper;
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

std::vector<int32_t> above(float threshold, const float* score, const uint8_t* valid, int32_t patches) {
    std::vector<int32_t> kept;
    for (int32_t j = 0; j < patches; ++j) {
        if (valid[j] && score[j] > threshold) kept.push_back(j);
    }
    return kept;
}

// Leaves the `limit` preferred tokens, still ascending.
void shrink(std::vector<int32_t>& kept, const float* score, int32_t limit) {
    if (static_cast<int32_t>(kept.size()) <= limit) return;
    std::nth_element(kept.begin(), kept.begin() + limit, kept.end(),
                     [score](int32_t a, int32_t b) { return preference(score[a], a) > preference(score[b], b); });
    kept.resize(limit);
    std::sort(kept.begin(), kept.end());
}

}  // namespace

Selection select_tokens(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                        int32_t patches) {
    Selection selection;
    const int32_t limit = row_limit(parameters, patches);
    for (int32_t b = 0; b < batch; ++b) {
        const float* image_score = score + static_cast<int64_t>(b) * patches;
        const uint8_t* image_valid = valid + static_cast<int64_t>(b) * patches;
        std::vector<int32_t> kept = parameters.mode == Mode::kThreshold
                                        ? above(parameters.threshold, image_score, image_valid, patches)
                                        : sampled(parameters, image_score, image_valid, patches);
        shrink(kept, image_score, limit);
        selection.count = std::max<int64_t>(selection.count, kept.size());
        selection.rows.push_back(std::move(kept));
    }
    if (parameters.padded) selection.count = limit;
    return selection;
}

void emit_tokens(const Selection& selection, int64_t* index, uint8_t* keep) {
    for (const std::vector<int32_t>& row : selection.rows) {
        const int64_t real = static_cast<int64_t>(row.size());
        for (int64_t slot = 0; slot < selection.count; ++slot) {
            *index++ = slot < real ? row[slot] : 0;
            *keep++ = slot < real;
        }
    }
}

}  // namespace vitprune
