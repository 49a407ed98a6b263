// SPDX-License-Identifier: Apache-2.0
//
// Attention of images that lie behind each other, on the host: the queries of an image meet its own keys alone.
#pragma once

#include <cstdint>

namespace vitprune {

// Rows of image b: query_ends[b]..query_ends[b+1] of query and output, key_ends likewise of key and value.
struct PackedAttention {
    const float* query;          // [Tq, heads * width]
    const float* key;            // [Tk, heads * width]
    const float* value;          // [Tk, heads * width]
    const float* bias;           // [Tk], added to the logits of a key, or null
    const int64_t* query_ends;   // [images + 1], first 0, never falling
    const int64_t* key_ends;     // [images + 1]
    int64_t images, heads, width;
    float scale;
    float* output;               // [Tq, heads * width]
};

// One head of one image; unit: image * heads + head. Units do not touch each other's output. An image without keys gets zeros.
void attend_packed(const PackedAttention& all, int64_t unit);

// A status of vitprune_plugin.h: sizes and scale are refused here alone.
int32_t check_packed(int64_t images, int64_t heads, int64_t width, float scale);

// Whether ends are the boundaries of `images` segments of `rows` rows.
bool valid_ends(const int64_t* ends, int64_t images, int64_t rows);

}  // namespace vitprune
