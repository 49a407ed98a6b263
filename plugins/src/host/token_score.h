// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "parameters.h"

namespace vitprune {

// Attention of the class token times value norms. query dtype [B,H,D], key and value dtype [B,H,N,D], valid bool [B,P];
// writes score float32 [B,P]. Keys of invalid tokens take no part in the softmax; their score is 0.
void token_score(const ScoreParameters& parameters, int32_t dtype, const void* query, const void* key, const void* value,
                 const uint8_t* valid, const ScoreShape& shape, float* score);

}  // namespace vitprune
