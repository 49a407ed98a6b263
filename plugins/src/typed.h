// SPDX-License-Identifier: Apache-2.0
//
// Values whose element type is known only when a call is made.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "vitprune_plugin.h"

namespace vitprune {

struct Typed {
    const void* data = nullptr;
    int32_t dtype = VP_FLOAT32;

    VP_HD Typed() {}
    VP_HD Typed(const float* values) : data(values) {}
    VP_HD Typed(const void* values, int32_t type) : data(values), dtype(type) {}
};

VP_HD bool is_dtype(int32_t dtype) { return dtype == VP_FLOAT32 || dtype == VP_FLOAT16 || dtype == VP_BFLOAT16; }
VP_HD int64_t element_bytes(int32_t dtype) { return dtype == VP_FLOAT32 ? 4 : 2; }

}  // namespace vitprune
