// SPDX-License-Identifier: Apache-2.0
//
// The merging sites' kernels for the emulator.
#include <cuda_runtime_api.h>

#include "cuda/merge_entry.cpp"
#include "cuda/merge_site.cu"
#include "cuda/pair_merge.cu"
#include "cuda/sampled_merge.cu"
#include "cuda/ward_merge.cu"
