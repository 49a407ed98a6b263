// SPDX-License-Identifier: Apache-2.0
//
// What the merging sites share on the host: which slots join which, the rows that come of it, and where everything goes.
#pragma once

#include <cstdint>
#include <vector>

#include "merge_site.h"

namespace vitprune {

// One image at a site. Slots are patches, 0..patches-1; token row of a slot: prefix + slot. Null: every slot valid, all sizes
// one, numbered in order, groups not followed.
struct MergeImage {
    const float* x;         // [prefix + patches, width]
    const float* size;      // [patches], patches that a row stands for
    const int64_t* patch;   // [patches], original number of the slot's representative
    const uint8_t* valid;   // [patches]
    const int64_t* group;   // [originals]
    int64_t prefix, patches, width, originals;

    bool live(int64_t slot) const { return valid == nullptr || valid[slot] != 0; }
    float size_of(int64_t slot) const { return size == nullptr ? 1.0f : size[slot]; }
    int64_t number(int64_t slot) const { return patch == nullptr ? slot : patch[slot]; }
    const float* row(int64_t slot) const { return x + (prefix + slot) * width; }
};

// How rows that join become one.
enum class Mean {
    kSizes,     // weighted by sizes (ToMe)
    kKeptNorm,  // weighted by masses and brought to the largest norm among the members (Ward merging)
};

// What a site decided for one image: into[slot] is the slot where it ends (itself: it stays or is a pad), mass its weight in a
// mean, kept the slots that go on, in the order of their new rows.
struct Merging {
    std::vector<int64_t> into;
    std::vector<float> mass;
    std::vector<int64_t> kept;
};

// Leaves the `limit` heaviest of ascending slots, ties to the lower one, still ascending.
void keep_heaviest(std::vector<int64_t>& slots, const std::vector<float>& mass, int64_t limit);

// Length of a row.
float norm_of(const float* row, int64_t width);

// Lengths of rows [count, width] behind each other, none less than `floor`.
void norms_of(const float* rows, int64_t count, int64_t width, float floor, float* out);

// Where the rows of one image go; as MergeOutputs, of this image.
void write_merged(const MergeImage& image, const Merging& merging, Mean mean, const MergeParameters& parameters, const MergeOutputs& out);

// What a slot receives of attention: heads values for each, to be added up.
struct Attention {
    const float* values = nullptr;  // null: not asked for
    int64_t heads = 1;
};

// gram: inner products of the slots' rows, or of what stands for their channels [patches, patches]; damages are between directions.
Merging ward_merging(const MergeParameters& parameters, const MergeImage& image, const float* gram, const Attention& attention);

// products: of the metric's rows [members of A, members of B], prefix rows left out; metric: [patches, depth], not of unit length, no
// row counted as shorter than `floor`.
Merging pair_merging(const MergeParameters& parameters, const MergeImage& image, const float* products, const float* metric,
                     int64_t depth);

}  // namespace vitprune
