// SPDX-License-Identifier: Apache-2.0
//
// Loops that are compiled for several widths of vectors and chosen when the library is loaded. Sums are in lanes and contraction is
// off (fused() is one rounding), so every width computes the same.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#if __GNUC__ >= 12  // older ones do not know levels of x86-64
#define VP_WIDE __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define VP_WIDE __attribute__((target_clones("default", "fma")))
#endif
#define VP_INLINE __attribute__((always_inline)) inline  // a call would leave the function that exists several times
#else
#define VP_WIDE
#define VP_INLINE inline
#endif
