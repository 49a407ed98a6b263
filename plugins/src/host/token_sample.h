// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "parameters.h"

namespace vitprune {

// The kept tokens of a batch before they are laid out: rows[b] ascending, count = K.
struct Selection {
    std::vector<std::vector<int32_t>> rows;
    int64_t count = 1;
};

// score float32 [B,P], valid bool [B,P].
Selection select_tokens(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                        int32_t patches);

// Writes index int64 [B,K] and keep bool [B,K]; pad slots hold 0 and false.
void emit_tokens(const Selection& selection, int64_t* index, uint8_t* keep);

}  // namespace vitprune
