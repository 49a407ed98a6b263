// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace vitprune {

// Inner products of sketches of rows [count, width]: channel c counts with its sign in sum c mod sums. gram [count, count] is
// symmetric to the bit.
void sketch_products(const float* rows, int64_t count, int64_t width, const float* signs, int64_t sums, float* gram);

}  // namespace vitprune
