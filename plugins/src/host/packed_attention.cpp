// SPDX-License-Identifier: Apache-2.0
#include "host/packed_attention.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "host/attention_tiles.h"
#include "vitprune_plugin.h"

namespace vitprune {
namespace {

constexpr int64_t kBlock = 4 * tiles::kRows;  // queries that a panel is read for once

struct Scratch {
    std::vector<float> across;   // keys of a head as columns, in panels
    std::vector<float> values;   // values of a head, in panels
    std::vector<float> asked;    // queries of a block, scaled: [kBlock, width]
    std::vector<float> logits;   // [kBlock, keys rounded up]
    std::vector<float> context;  // [kBlock, width rounded up]
};

// One head of one image; strides in floats, matrices of scratch as in Scratch.
struct Head {
    const float *query, *key, *value, *bias;
    int64_t queries, keys, width, stride;
    float scale;
    float *across, *values, *asked, *logits, *context, *output;
};

template <int Count>
[[gnu::always_inline]] inline void attend_head(const Head& one) {
    const int64_t key_columns = tiles::rounded<Count>(one.keys), value_columns = tiles::rounded<Count>(one.width);
    tiles::pack_across<Count>(one.key, one.stride, one.width, one.keys, one.across);
    tiles::pack_along<Count>(one.value, one.stride, one.keys, one.width, one.values);
    for (int64_t first = 0; first < one.queries; first += kBlock) {
        const int64_t rows = std::min(kBlock, one.queries - first);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < one.width; ++c) one.asked[r * one.width + c] = one.query[(first + r) * one.stride + c] * one.scale;
        }
        tiles::product<Count>(one.asked, one.width, one.across, rows, one.width, key_columns, one.logits, key_columns);
        float factor[kBlock];
        for (int64_t r = 0; r < rows; ++r) factor[r] = tiles::soften<Count>(one.logits + r * key_columns, one.bias, one.keys);
        tiles::product<Count>(one.logits, key_columns, one.values, rows, one.keys, value_columns, one.context, value_columns);
        for (int64_t r = 0; r < rows; ++r) {
            float* out = one.output + (first + r) * one.stride;
            for (int64_t c = 0; c < one.width; ++c) out[c] = factor[r] * one.context[r * value_columns + c];
        }
    }
}

void attend_plain(const Head& one) { attend_head<8>(one); }
VP_AVX2 void attend_avx2(const Head& one) { attend_head<8>(one); }
VP_AVX512 void attend_avx512(const Head& one) { attend_head<16>(one); }

}  // namespace

void attend_packed(const PackedAttention& all, int64_t unit) {
    const int64_t image = unit / all.heads, head = unit % all.heads, stride = all.heads * all.width;
    const int64_t first = all.query_ends[image], queries = all.query_ends[image + 1] - first;
    const int64_t first_key = all.key_ends[image], keys = all.key_ends[image + 1] - first_key;
    float* output = all.output + first * stride + head * all.width;
    if (keys == 0) {
        for (int64_t n = 0; n < queries; ++n) std::fill_n(output + n * stride, all.width, 0.0f);
        return;
    }
    static thread_local Scratch scratch;  // grows to the longest image that its thread has seen
    scratch.across.resize(tiles::panel_floats(all.width, keys));
    scratch.values.resize(tiles::panel_floats(keys, all.width));
    scratch.asked.resize(kBlock * all.width);
    scratch.logits.resize(tiles::panel_floats(kBlock, keys));
    scratch.context.resize(tiles::panel_floats(kBlock, all.width));
    static const auto attend = tiles::widest(attend_plain, attend_avx2, attend_avx512);
    const int64_t at = head * all.width;
    attend({all.query + first * stride + at, all.key + first_key * stride + at, all.value + first_key * stride + at,
            all.bias == nullptr ? nullptr : all.bias + first_key, queries, keys, all.width, stride, all.scale, scratch.across.data(),
            scratch.values.data(), scratch.asked.data(), scratch.logits.data(), scratch.context.data(), output});
}

int32_t check_packed(int64_t images, int64_t heads, int64_t width, float scale) {
    if (images < 1 || images > 1048576) return VP_BAD_BATCH;
    if (heads < 1 || heads > 1024 || width < 1 || width > 4096) return VP_BAD_HEADS;
    return std::isfinite(scale) && scale > 0.0f ? VP_OK : VP_BAD_SCALE;
}

bool valid_ends(const int64_t* ends, int64_t images, int64_t rows) {
    if (ends[0] != 0 || ends[images] != rows) return false;
    for (int64_t b = 0; b < images; ++b) {
        if (ends[b + 1] < ends[b]) return false;
    }
    return true;
}

}  // namespace vitprune

int32_t vp_packed_attention_cpu(const float* query, const float* key, const float* value, const float* bias, const int64_t* query_ends,
                                const int64_t* key_ends, int64_t images, int64_t heads, int64_t width, float scale, float* output) {
    using namespace vitprune;
    const int32_t status = check_packed(images, heads, width, scale);
    if (status != VP_OK) return status;
    if (!(query && key && value && query_ends && key_ends && output)) return VP_NULL_POINTER;
    if (!valid_ends(query_ends, images, query_ends[images]) || !valid_ends(key_ends, images, key_ends[images])) return VP_BAD_ENDS;
    const PackedAttention all{query, key, value, bias, query_ends, key_ends, images, heads, width, scale, output};
    try {
        for (int64_t unit = 0; unit < images * heads; ++unit) attend_packed(all, unit);
    } catch (const std::bad_alloc&) {
        return VP_OUT_OF_MEMORY;
    }
    return VP_OK;
}
