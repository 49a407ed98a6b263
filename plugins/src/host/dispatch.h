// SPDX-License-Identifier: Apache-2.0
//
// Loops that are compiled for several widths of vectors and chosen when the library is loaded. Sums are in lanes and contraction is
// off, so every width computes the same.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__)
#define VP_WIDE __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define VP_WIDE
#endif
