// SPDX-License-Identifier: Apache-2.0
//
// Rounding a float to an element type, to nearest and ties to even, on host and device.
#pragma once

#include "element.h"

namespace vitprune {

template <typename Element>
VP_HD Element narrow(float value);

template <>
VP_HD float narrow<float>(float value) {
    return value;
}

#if defined(__CUDACC__)

template <>
__device__ inline Half narrow<Half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ inline Bfloat16 narrow<Bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

#else

template <>
inline Bfloat16 narrow<Bfloat16>(float value) {
    const uint32_t bits = bits_of(value);
    if (value != value) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <>
inline Half narrow<Half>(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (size >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
    if (size < 0x38800000u) {  // below 2^-14: in steps of 2^-24, which a sum with 0.5 (steps of 2^-24) rounds to
        return {static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u))};
    }
    return {static_cast<uint16_t>(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13)};
}

#endif

}  // namespace vitprune
