// SPDX-License-Identifier: Apache-2.0
//
// Logarithm and power of floats, once for host and device, whose libraries round them differently. Computed in float64 with rounded
// operations of their own, so the result is the float nearest to the true value but for 1 in some 10^5 arguments, where it is its
// neighbour: less than 0.50001 units in the last place off. Where results are no longer normal floats they are rounded like any others.
#pragma once

#include <limits>

#include "arithmetic.h"

namespace vitprune {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNotANumber = std::numeric_limits<float>::quiet_NaN();

namespace wide {

VP_HD double add(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

VP_HD double mul(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

VP_HD double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __ddiv_rn(a, b);
#else
    return a / b;
#endif
}

VP_HD uint64_t bits_of(double value) {
#if defined(__CUDA_ARCH__)
    return static_cast<uint64_t>(__double_as_longlong(value));
#else
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

VP_HD double double_of(uint64_t bits) {
#if defined(__CUDA_ARCH__)
    return __longlong_as_double(static_cast<long long>(bits));
#else
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// ln(x) of a positive finite float, within 1e-14 of itself: m in [0.7, 1.42) by its atanh series, up to the power 17.
VP_HD double logarithm(float x) {
    const uint64_t bits = bits_of(static_cast<double>(x));  // a normal float64, whatever float it is
    const double whole = double_of((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
    const bool high = whole > 1.4142135623730951;
    const double m = high ? mul(whole, 0.5) : whole;
    const double exponent = static_cast<double>(static_cast<int32_t>(bits >> 52) - (high ? 1022 : 1023));
    const double s = divide(add(m, -1.0), add(m, 1.0)), q = mul(s, s);
    double p = 1.0 / 17.0;
    p = add(mul(p, q), 1.0 / 15.0);
    p = add(mul(p, q), 1.0 / 13.0);
    p = add(mul(p, q), 1.0 / 11.0);
    p = add(mul(p, q), 1.0 / 9.0);
    p = add(mul(p, q), 1.0 / 7.0);
    p = add(mul(p, q), 1.0 / 5.0);
    p = add(mul(p, q), 1.0 / 3.0);
    p = add(mul(p, q), 1.0);
    return add(mul(exponent, 0.69314718055994531), mul(mul(s, 2.0), p));
}

// e^x as a float: 0 and infinity beyond what a float holds; x is a number.
VP_HD float exponential(double x) {
    const double bounded = x < -104.0 ? -104.0 : x > 89.0 ? 89.0 : x;  // e^-104 rounds to 0, e^89 to infinity
    const double n = rint(mul(bounded, 1.4426950408889634));
    const double r = add(add(bounded, mul(n, -0.693147180369123816490)), mul(n, -1.90821492927058770002e-10));
    double p = 1.0 / 39916800.0;
    p = add(mul(p, r), 1.0 / 3628800.0);
    p = add(mul(p, r), 1.0 / 362880.0);
    p = add(mul(p, r), 1.0 / 40320.0);
    p = add(mul(p, r), 1.0 / 5040.0);
    p = add(mul(p, r), 1.0 / 720.0);
    p = add(mul(p, r), 1.0 / 120.0);
    p = add(mul(p, r), 1.0 / 24.0);
    p = add(mul(p, r), 1.0 / 6.0);
    p = add(mul(p, r), 0.5);
    p = add(mul(p, r), 1.0);
    p = add(mul(p, r), 1.0);
    return static_cast<float>(mul(p, double_of(static_cast<uint64_t>(static_cast<int32_t>(n) + 1023) << 52)));
}

}  // namespace wide

// ln(x): -infinity of 0, NaN of what is negative.
VP_HD float natural_log(float x) {
    if (x == 1.0f) return 0.0f;  // as most sizes are
    if (!(x > 0.0f)) return x == 0.0f ? -kInfinity : kNotANumber;
    return x == kInfinity ? x : static_cast<float>(wide::logarithm(x));
}

// x^power of x >= 0 and a power that is no NaN and not 0; NaN of what is negative. Without a branch, so that a loop over it becomes vector
// code.
VP_HD float power_of(float x, float power) {
    const bool inside = x > 0.0f && x < kInfinity;
    const float computed = wide::exponential(wide::mul(wide::logarithm(inside ? x : 1.0f), power));
    const float beyond = (x > 0.0f) == (power > 0.0f) ? kInfinity : 0.0f;  // of 0 and infinity
    return inside ? computed : x >= 0.0f ? beyond : kNotANumber;
}

}  // namespace vitprune
