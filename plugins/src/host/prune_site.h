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

// Who stays, by a score [B,P]; selection.count is K.
Selection select_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const float* score);

// Gathers what goes on. `score` is the one that was selected by.
void write_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const float* score,
                const Selection& selection, const SiteOutputs& out, const ForEach& each);

}  // namespace vitprune
