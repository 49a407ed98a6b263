// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "host/parallel.h"
#include "host/token_sample.h"
#include "site.h"

namespace vitprune {

// Scores float [B,P] of a site whose form is not kGiven; tokens that are not valid are no keys and score 0. The sums have the order
// of token_score.cpp.
void site_score(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, float* score, const ForEach& each);

// What a site decides: who stays, by which score.
struct SiteDecision {
    std::vector<float> own;  // the score, where it is computed here
    const float* score;      // [B,P], `own` or an input
    Selection selection;     // selection.count is K
};

SiteDecision decide_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const ForEach& each);

// Gathers what goes on, and the score into `told`, null where nobody asks.
void write_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const SiteDecision& decided,
                const SiteOutputs& out, float* told, const ForEach& each);

}  // namespace vitprune
