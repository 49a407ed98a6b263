// SPDX-License-Identifier: Apache-2.0
//
// Exact widening of the stored element types to float32.
#pragma once

#include <cstdint>

#include "arithmetic.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace vitprune {

VP_HD float widen(float value) { return value; }

#if defined(__CUDACC__)

using Half = __half;
using Bfloat16 = __nv_bfloat16;

__device__ inline float widen(Half value) { return __half2float(value); }
__device__ inline float widen(Bfloat16 value) { return __bfloat162float(value); }

#else

struct Half {
    uint16_t bits;
};

struct Bfloat16 {
    uint16_t bits;
};

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

#endif

}  // namespace vitprune
