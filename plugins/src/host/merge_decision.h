// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "host/merging.h"
#include "host/parallel.h"

namespace vitprune {

// What a merging site decides.
struct MergeDecision {
    std::vector<Merging> images;
    std::vector<float> own;        // the score, where it is computed here
    const float* score = nullptr;  // [B,P], `own` or an input; null where the kind has none
    int64_t count = 1;             // K
    bool fits = true;              // no image keeps more than K
};

MergeDecision decide_merge(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, const ForEach& each);

// Writes what goes on; out.count is decided.count.
void write_merge(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, const MergeDecision& decided,
                 const MergeOutputs& out, const ForEach& each);

}  // namespace vitprune
