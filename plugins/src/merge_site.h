// SPDX-License-Identifier: Apache-2.0
//
// A merging site as one operator, PairMerge, WardMerge or SampledMerge: who joins whom, and what goes on. What host and device share.
//
// Shapes: B images, N = prefix + P token rows of width C, K kept slots, M = prefix + K rows that go on, P0 patches of the dense model.
// Slots are patches, 0..P-1; the token row of a slot is prefix + slot. Everything is dense and row major; null stands for what a site
// has not.
#pragma once

#include <cstdint>

#include "powers.h"
#include "site.h"

namespace vitprune {

enum class MergeKind : int32_t {
    kPair,     // even token rows join odd ones (ToMe, arXiv 2210.09461)
    kWard,     // reciprocal pairs of least damage, in rounds (docs/methods/ward_merge.md)
    kSampled,  // what ATS (arXiv 2111.15667) drops joins what it keeps (docs/methods/ats_merge.md)
};

// Members of A are even token rows, those of B odd ones; a member of A joins its most similar one of B.
struct PairParameters {
    int64_t pairs = 0;          // largest number of members of A that leave
    bool by_threshold = false;  // only those above the threshold, or as many as `most` demands
    float threshold = 0.0f;
};

struct WardParameters {
    float limit = 0.0f;     // damage below which a pair merges; with a fixed count all pairs may
    int64_t pairs = -1;     // pairs to merge in all rounds, -1: as many as are below the limit
    int64_t rounds = 2;
    float power = 0.4f;     // of the importance in the mass
    float everyone = 1.0f;  // tokens of the image before anything merged
    float share = 1.0f;     // of the sum over heads in the attention
};

struct MergeParameters {
    MergeKind kind = MergeKind::kPair;
    int32_t prefix = 0;
    int64_t most = 0;           // largest number of slots that stay, 0: no bound
    bool padded = false;        // K = most
    bool loses = false;         // a bound may lose rows, and their patches have no row then
    bool proportional = false;  // the bias holds log(size)
    float floor = 0.0f;         // of kPair and kSampled: no row of the metric counts as shorter
    PairParameters pair;
    WardParameters ward;
    SiteParameters site;        // of kSampled: how it scores and samples
};

struct MergeShape {
    int32_t batch, patches, prefix;
    int32_t width;      // C, of x
    int32_t heads;      // H; of kWard: of query and key, or of the attention, 0: an attention [B,P] or none
    int32_t depth;      // D, of the metric (kPair) or of a head
    int32_t originals;  // P0, 0 without groups
#if defined(__CUDACC__)
    __host__ __device__
#endif
    int32_t tokens() const { return prefix + patches; }
};

struct MergeInputs {
    const float* x;          // [B,N,C]
    const float* products;   // kPair: of the metric's rows [B, members of A, members of B], prefix rows left out
    const float* metric;     // kPair [B,N,D], kSampled [B,N,H*D]; not of unit length
    const float* gram;       // kWard: inner products of the slots' rows, or of what stands for their channels [B,P,P]
    const float* attention;  // kWard: what the first token gives every token, [B,N,H] or, with H = 0, every patch [B,P]
    const float* query;      // kWard [B,N,H*D], of which the first row asks (in place of attention); kSampled [B,H*D]; scaled
    const float* key;        // [B,N,H*D]
    const float* value;      // kSampled [B,N,H*D]
    const float* score;      // kSampled [B,P]
    const float* bias;       // [B,N], added to the first token's logits
    const float* size;       // [B,N], patches that a row stands for; null: one each
    const int64_t* patch;    // [B,P], original number of a slot's representative; null: 0, 1, ...
    const uint8_t* valid;    // [B,P]; null: all
    const int64_t* group;    // [B,P0], the number of the row that stands for a patch, -1: none; null: not followed
};

// K is known before anything of these is written. All but rows may be null.
struct MergeOutputs {
    float* rows;     // [B,M,C]
    float* size;     // [B,M]
    float* bias;     // [B,M], what is added to the logits of these rows as keys: log(size) if asked for, and kPadBias on pads
    int64_t* index;  // [B,K], slots; pads have slot 0
    uint8_t* keep;   // [B,K], false on pads
    int64_t* group;  // [B,P0]
    int64_t* patch;  // [B,K], original numbers
    int64_t* kept;   // [B,K], original numbers, -1 on pads
    float* score;    // [B,P], of kSampled
    int64_t count;   // K
};

const char* merge_kind_name(MergeKind kind);

int32_t check_merge(const VpMergeAttributes* attributes, MergeParameters& parameters);
int32_t check_merge_shape(const MergeParameters& parameters, const VpMergeSizes& sizes, MergeShape& shape);
int32_t check_merge_inputs(const MergeParameters& parameters, const MergeShape& shape, const MergeInputs& in);
MergeInputs merge_inputs(const VpMergeTensors& tensors);

// `count` as in MergeOutputs.
MergeOutputs merge_outputs(const VpMergeTensors& tensors, int64_t count);

// Largest K that any input can give; padded, K itself.
int64_t merge_limit(const MergeParameters& parameters, int32_t patches);

// The site's part that scores, for site_score() and its kernel: of kSampled, and of kWard with a query.
SiteInputs scoring_inputs(const MergeInputs& in, const MergeShape& shape, MergeKind kind);
SiteShape scoring_shape(const MergeShape& shape);

constexpr float kShortest = 1e-12f;  // no row's length counts as less where it divides
constexpr float kLightest = 1e-9f;   // nor a mass
constexpr float kImpossible = 4.0f;  // taken off a cosine, it falls below every threshold
constexpr float kNoDamage = kInfinity;  // of a slot with itself, and with one that is gone

// The larger one as std::max has it: `a` where they cannot be compared.
VP_HD float larger(float a, float b) { return a < b ? b : a; }

// A value with a place in every order: NaN comes last where the largest comes first.
VP_HD float ranked(float value) { return value == value ? value : -kInfinity; }

// What is taken off the likeness with a pad.
VP_HD float hidden(bool live) { return live ? 0.0f : -kImpossible; }

// How alike two rows of the metric are; hidden_b: of the row of B, that of A is taken off the best of them.
VP_HD float likeness(float product, float length_a, float length_b, float hidden_b) {
    return add(divide(product, mul(length_a, length_b)), hidden_b);
}

// Size of a row times its importance (attention per patch, 1 = average) to the power.
VP_HD float ward_mass(const WardParameters& parameters, float size, float received) {
    const float importance = mul(divide(mul(received, parameters.share), size), parameters.everyone);
    return larger(mul(size, power_of(importance, parameters.power)), kLightest);
}

// Damage of merging two directions: |z_i - z_j|^2 / (1 / m_i + 1 / m_j). length: their squared lengths.
VP_HD float ward_damage(float product, float own, float length, float own_inverse, float inverse) {
    return divide(add(add(own, -mul(2.0f, product)), length), add(own_inverse, inverse));
}

// A value on its way to another one by a share of the way.
VP_HD float moved(float own, float other, float share) { return add(own, mul(share, add(other, -own))); }

// What is added to the logits of a row as a key.
VP_HD float merged_bias(bool proportional, float size, bool real) {
    return add(proportional ? natural_log(size) : 0.0f, real ? 0.0f : kPadBias);
}

// Members of A and of B among the patches: slots first, first + 2, ...
VP_HD int32_t first_of_a(int32_t prefix) { return prefix % 2; }
VP_HD int32_t first_of_b(int32_t prefix) { return 1 - prefix % 2; }
VP_HD int32_t members_of(int32_t first, int32_t patches) { return (patches - first + 1) / 2; }

}  // namespace vitprune
