// SPDX-License-Identifier: Apache-2.0
//
// Halting of tokens after a block (A-ViT, arXiv 2112.07658, equations 4 to 9), TokenHalt: its arithmetic, in float32.
//
// Every token adds up a score in (0, 1) block by block and halts when the sum passes 1 - eps. Shapes: B images, N = prefix + P token
// rows of width C.
#pragma once

#include "site.h"

namespace vitprune {

constexpr float kHaltPad = 2.0f;  // sum of a pad: it has halted

struct HaltParameters {
    SiteParameters site;   // of the compaction; `prefix` and `originals` count without one, too
    int32_t channel = 0;   // of x, the one that carries the score
    float scale = 1.0f;    // score: sigmoid(scale * x - center)
    float center = 0.0f;
    float limit = 1.0f;    // 1 - eps
    bool compacts = false;  // halted patches leave
    bool exits = false;     // all patches of an image leave once none of its prefix tokens goes on
    bool last = false;      // of the last block: whoever is active halts here
};

// 1 / (1 + e^-x), within some units in the last place.
VP_HD float sigmoid(float x) {
    const float small = exp_nonpositive(x < 0.0f ? x : -x);
    return divide(x < 0.0f ? small : 1.0f, add(1.0f, small));
}

VP_HD float halting_score(const HaltParameters& parameters, float value) {
    return sigmoid(add(mul(value, parameters.scale), -parameters.center));
}

// One step of a token that carries a remainder: the weight of this block's output, and the remainder behind it. A sum of exactly
// the limit neither halts nor goes on: the token leaves and its weight is lost, as in the official rule.
struct HaltStep {
    float weight, remainder;
};

VP_HD HaltStep halt_step(float limit, bool active, float score, float total, float remainder) {
    if (total < limit) return {score, add(remainder, -score)};
    return {active && total > limit ? remainder : 0.0f, remainder};
}

}  // namespace vitprune
