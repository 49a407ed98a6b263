// SPDX-License-Identifier: Apache-2.0
#include "host/packed_attention.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "vitprune_plugin.h"

namespace vitprune {
namespace {

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
    if (largest == -INFINITY) {  // every key is hidden
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

struct Scratch {
    std::vector<float> across;   // keys of a head, transposed: [width, keys rounded up]
    std::vector<float> values;   // values of a head: [keys, width rounded up]
    std::vector<float> logits;   // [kRows, keys rounded up]
    std::vector<float> context;  // [kRows, width rounded up]
};

// One head of one image; strides in floats, matrices of scratch as in Scratch.
struct Head {
    const float *query, *key, *value, *bias;
    int64_t queries, keys, width, stride;
    float scale;
    float *across, *values, *logits, *context, *output;
};

[[gnu::always_inline]] inline void attend_head(const Head& one) {
    const int64_t key_columns = rounded(one.keys), value_columns = rounded(one.width);
    for (int64_t n = 0; n < one.keys; ++n) {
        for (int64_t c = 0; c < one.width; ++c) one.across[c * key_columns + n] = one.key[n * one.stride + c];
        for (int64_t c = 0; c < one.width; ++c) one.values[n * value_columns + c] = one.value[n * one.stride + c];
    }
    for (int64_t first = 0; first < one.queries; first += kRows) {
        const int64_t rows = std::min(kRows, one.queries - first);
        product(one.query + first * one.stride, one.stride, one.across, key_columns, rows, one.width, key_columns, one.logits, key_columns);
        float factor[kRows];
        for (int64_t r = 0; r < rows; ++r) factor[r] = soften(one.logits + r * key_columns, one.bias, one.keys, one.scale);
        product(one.logits, key_columns, one.values, value_columns, rows, one.keys, value_columns, one.context, value_columns);
        for (int64_t r = 0; r < rows; ++r) {
            float* out = one.output + (first + r) * one.stride;
            for (int64_t c = 0; c < one.width; ++c) out[c] = factor[r] * one.context[r * value_columns + c];
        }
    }
}

// The same source for the processors that it may meet: the library is built once and must run on all of them.
void attend_plain(const Head& one) { attend_head(one); }

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void attend_avx2(const Head& one) { attend_head(one); }
[[gnu::target("avx512f,avx512vl,avx512dq,avx2,fma")]] void attend_avx512(const Head& one) { attend_head(one); }

void (*best_attend())(const Head&) {
    const bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool five = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return two && five ? attend_avx512 : two ? attend_avx2 : attend_plain;
}
#else
void (*best_attend())(const Head&) { return attend_plain; }
#endif

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
    scratch.across.assign(all.width * rounded(keys), 0.0f);
    scratch.values.assign(keys * rounded(all.width), 0.0f);
    scratch.logits.resize(kRows * rounded(keys));
    scratch.context.resize(kRows * rounded(all.width));
    static void (*const attend)(const Head&) = best_attend();
    const int64_t at = head * all.width;
    attend({all.query + first * stride + at, all.key + first_key * stride + at, all.value + first_key * stride + at,
            all.bias == nullptr ? nullptr : all.bias + first_key, queries, keys, all.width, stride, all.scale, scratch.across.data(),
            scratch.values.data(), scratch.logits.data(), scratch.context.data(), output});
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
