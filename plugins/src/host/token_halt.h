// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "halting.h"
#include "host/parallel.h"
#include "host/prune_site.h"

namespace vitprune {

// What goes into a step; null in the first block: total, remainder and output.
struct HaltInputs {
    const float* x;          // [B,N,C], what the block made
    const float* total;      // [B,N], sums of scores; kHaltPad and more on pads
    const float* remainder;  // [B,prefix]
    const float* output;     // [B,prefix,C], the sum of the prefix tokens' weighted outputs
    const int64_t* patch;    // [B,P], original numbers, null: 0, 1, ...
};

struct HaltShape {
    int32_t batch, tokens, width;
};

// Sums [B,N] and, where told is not null, the scores [B,N] behind them.
std::vector<float> halt_totals(const HaltParameters& parameters, const HaltInputs& in, const HaltShape& shape, float* told);

// Remainder [B,prefix] and weighted output [B,prefix,C] behind the step; total: what `halt_totals` made.
void halt_prefix(const HaltParameters& parameters, const HaltInputs& in, const HaltShape& shape, const float* total, float* remainder,
                 float* output);

// What is left of every patch until it halts, [B,P]: who stays is positive.
std::vector<float> halt_left(const HaltParameters& parameters, const HaltShape& shape, const float* total);

// Sums [B,M] of the rows that stay, pads filled up; mask [B,M]: which of them are keys of the next block. selection null: all stay.
void halt_carry(const HaltParameters& parameters, const HaltShape& shape, const float* total, const Selection* selection,
                float* carried, int32_t* mask);

}  // namespace vitprune
