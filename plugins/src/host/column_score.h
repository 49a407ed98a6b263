// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "host/parallel.h"

namespace vitprune {

// Attention of a batch whose images have all tokens [prefix + patches, heads * width]; queries are scaled.
struct ColumnAttention {
    const float *query, *key, *value;
    int64_t batch, patches, prefix, heads, width;
};

// POMT's score [batch, patches] (arXiv 2407.05941): the sum over all queries of the largest attention among the heads, over its maximum
// among the patches, and the softmax over the patches of the sum over channels of the largest value among the heads.
void column_score(const ColumnAttention& all, float* score, const ForEach& each);

}  // namespace vitprune
