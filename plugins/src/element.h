// SPDX-License-Identifier: Apache-2.0
//
// Exact widening of the stored element types to float32, for host code.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace vitprune {

struct Half {
    uint16_t bits;
};

struct Bfloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(Bfloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Half value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t exponent = value.bits >> 10 & 0x1fu;
    const uint32_t fraction = value.bits & 0x3ffu;
    if (exponent == 0x1f) return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24, the subnormal step
    return float_of(bits_of(magnitude) | sign);
}

}  // namespace vitprune
