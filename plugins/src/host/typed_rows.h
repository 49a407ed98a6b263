// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "typed.h"

namespace vitprune {

// `count` values from `first` on as floats: where they lie, or widened into `room`.
const float* as_floats(const Typed& values, int64_t first, int64_t count, std::vector<float>& room);

// Rounds floats to a type, to nearest and ties to even.
void round_to(int32_t dtype, const float* values, int64_t count, void* target);

}  // namespace vitprune
