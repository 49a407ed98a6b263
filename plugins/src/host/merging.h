// SPDX-License-Identifier: Apache-2.0
//
// What the merging sites share on the host: which slots join which, the rows that come of it, and where everything goes.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

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

// A value with a place in every order: NaN comes last where the largest comes first.
inline float ranked(float value) { return value == value ? value : -std::numeric_limits<float>::infinity(); }

// Leaves the `limit` heaviest of ascending slots, ties to the lower one, still ascending.
void keep_heaviest(std::vector<int64_t>& slots, const std::vector<float>& mass, int64_t limit);

// Where the rows of one image go. K rows; those behind kept.size() are pads and repeat slot 0.
struct MergeOutput {
    float* rows;      // [prefix + K, width]
    float* size;      // [prefix + K]
    float* bias;      // [prefix + K], what is added to the logits of these rows as keys
    int64_t* index;   // [K]
    uint8_t* keep;    // [K]
    int64_t* group;   // [originals] or null
    int64_t count;    // K
    bool proportional;  // the bias holds log(size)
};

// Length of a row, the sum in lanes.
float norm_of(const float* row, int64_t width);

// Where the bias of the later keys is wanted once for every query: [prefix + count, prefix + count], or null.
void write_mask(const MergeOutput& out, int64_t prefix, float* mask);

void write_merged(const MergeImage& image, const Merging& merging, Mean mean, bool loses, const MergeOutput& out);

// Ward merging (docs/methods/ward_merge.md): reciprocal pairs of least damage, in rounds.
struct WardParameters {
    float limit = 0.0f;     // damage below which a pair merges; with a fixed count all pairs may
    int64_t pairs = -1;     // pairs to merge in all rounds, -1: as many as are below the limit
    int64_t rounds = 2;
    float power = 0.4f;     // of the importance in the mass
    float everyone = 1.0f;  // tokens of the image before anything merged
    int64_t most = 0;       // largest number of slots that stay, 0: no bound
    float share = 1.0f;     // of the sum over heads in the attention
};

// What a slot receives of attention: heads values for each, to be added up.
struct Attention {
    const float* values = nullptr;  // null: not asked for
    int64_t heads = 1;
};

// What the first token asks, of one image: its query against the keys of all tokens [tokens, width], and what is added to the logits
// of each (null: nothing).
struct Asking {
    const float* query;
    const float* key;
    const float* bias;
    int64_t tokens, width, heads;
};

// Attention that the first token gives every token, summed over the heads.
std::vector<float> cls_attention(const Asking& asking);

// Sums of the channels of rows [count, width] with signs: channel c counts in sum c mod sums; out [count, sums].
void signed_sums(const float* rows, int64_t count, int64_t width, const float* signs, int64_t sums, float* out);

// gram: inner products of the slots' rows, or of what stands for their channels [patches, patches]; damages are between directions.
Merging ward_merging(const WardParameters& parameters, const MergeImage& image, const float* gram, const Attention& attention);

// ToMe's bipartite matching: even token rows are set A, odd ones B; a member of A joins its most similar one of B.
struct PairParameters {
    int64_t pairs = 0;         // largest number of members of A that leave
    bool by_threshold = false; // only those above the threshold, or as many as `most` demands
    float threshold = 0.0f;
    int64_t most = 0;          // slots that may stay, 0: no bound
};

// products: of the metric's rows [members of A, members of B], prefix rows left out; metric: [patches, depth], not of unit length, no
// row counted as shorter than `floor`.
Merging pair_merging(const PairParameters& parameters, const MergeImage& image, const float* products, const float* metric,
                     int64_t depth, float floor);

}  // namespace vitprune
