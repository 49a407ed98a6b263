// SPDX-License-Identifier: Apache-2.0
//
// A dropping site as one operator, PruneSite: scores, selects and compacts. What host and device share.
//
// Shapes: B images, N = prefix + P token rows of width C, H heads of width D, K kept slots, M = prefix + K rows that go on, and one
// more behind them where the dropped rows are combined. Everything is dense and row major; null stands for what a site has not.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "parameters.h"
#include "typed.h"

namespace vitprune {

// How a patch's score comes from the class token's attention a_h and the rows in `value`.
enum class SiteForm : int32_t {
    kGiven,      // it is an input
    kPerHead,    // sum of a_h |v_h| (ATS, arXiv 2111.15667)
    kPooled,     // (sum of a_h) |v| (its official code)
    kSum,        // sum of a_h
    kMean,       // mean of a_h (EViT, arXiv 2202.07800)
    kHeadShare,  // sum of a_h |v_h| / (sum of |v_h| + 1e-8), v the attention's output (AS-ViT, arXiv 2209.13802)
};

// What becomes of dropped rows.
enum class Combine : int32_t {
    kNothing,
    kWeighted,  // one row, their sum weighted by score (EViT)
    kMean,      // one row, their mean (POMT, arXiv 2407.05941)
};

struct SiteParameters {
    SampleParameters sample;
    SiteForm form = SiteForm::kGiven;
    Combine combine = Combine::kNothing;
    int32_t heads = 1;
    int32_t prefix = 0;
    int64_t originals = 0;  // patches of the dense model: numbers from here on belong to combined rows
};

struct SiteShape {
    int32_t batch, patches, prefix;
    int32_t width;        // C, of x
    int32_t width2;       // of h
    int32_t heads, head_width;  // of query, key and value
#if defined(__CUDACC__)
    __host__ __device__
#endif
    int32_t tokens() const { return prefix + patches; }
};

// Typed ones are widened to float32 before anything is computed, which is exact.
struct SiteInputs {
    Typed x;               // [B,N,C]
    Typed h;               // [B,N,C2]
    Typed query;           // [B,H*D] of the class token, scaled
    Typed key;             // [B,N,H*D]
    Typed value;           // [B,N,H*D]
    const float* score;    // [B,P]
    const float* theta;    // scalar, what a score has to exceed besides the threshold
    const uint8_t* valid;  // [B,P]
    const int64_t* patch;  // [B,P], original numbers
    const float* bias = nullptr;  // [B,N], added to the class token's logits
    int32_t query_rows = 1;       // rows of query per image, of which the first asks
};

// K is known before anything of these is written.
struct SiteOutputs {
    void* rows;          // [B,M,C] of x's type, a combined row behind them: [B,M+1,C], rounded once from float32
    void* rows2;         // [B*M,C2] of h's type
    int64_t* index;      // [B,K]
    uint8_t* keep;       // [B,K]
    int64_t* patch;      // [B,K] or [B,K+1]
    int64_t* kept;       // [B,K], original numbers, -1 on pads and combined rows
    int32_t* mask;       // [B,M] or [B,M+1], 1 on rows that are keys
    float* score_kept;   // [B,K]
    float* bias;         // [B,M] or [B,M+1], what hides pads as keys: 0 on rows that are keys, kPadBias on pads
    int64_t count;       // K
};

const char* site_form_name(SiteForm form);
const char* combine_name(Combine combine);

int32_t check_site(const VpPruneSiteAttributes* attributes, SiteParameters& parameters);
int32_t check_site_shape(const SiteParameters& parameters, const VpPruneSiteSizes& sizes, SiteShape& shape);
int32_t check_site_inputs(const SiteParameters& parameters, const SiteInputs& in);

constexpr float kShareFloor = 1e-8f;
constexpr float kPadBias = -1e4f;  // as the plain nodes have it: no attention is left in float32 or a half type

VP_HD bool reads_value(SiteForm form) {
    return form == SiteForm::kPerHead || form == SiteForm::kPooled || form == SiteForm::kHeadShare;
}

// Score of one patch. attention(h): softmax of the class token in head h; square(h): squared length of the patch's row in `value`,
// asked for only where the form reads values. Sums run over heads in order, so host and device agree on every bit.
template <typename Attention, typename Square>
VP_HD float patch_score(SiteForm form, int32_t heads, const Attention& attention, const Square& square) {
    float norms = 0.0f, squares = 0.0f, score = 0.0f;
    if (form == SiteForm::kHeadShare) {
        for (int32_t h = 0; h < heads; ++h) norms = add(norms, square_root(square(h)));
        norms = add(norms, kShareFloor);
    }
    for (int32_t h = 0; h < heads; ++h) {
        float part = attention(h);
        if (form == SiteForm::kPerHead) part = mul(part, square_root(square(h)));
        if (form == SiteForm::kHeadShare) part = mul(part, divide(square_root(square(h)), norms));
        if (form == SiteForm::kPooled) squares = add(squares, square(h));
        score = add(score, part);
    }
    if (form == SiteForm::kPooled) score = mul(score, square_root(squares));
    if (form == SiteForm::kMean) score = divide(score, static_cast<float>(heads));
    return score;
}

}  // namespace vitprune
