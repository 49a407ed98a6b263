// SPDX-License-Identifier: Apache-2.0
//
// Host side of the merging sites' kernels, for checked parameters. Nothing here allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "merge_site.h"

namespace vitprune {

size_t merge_workspace(const MergeParameters& parameters, const MergeShape& shape);

// Where the numbers of slots that stay, int32 [B], lie in a workspace after decide_merge_on_device.
int32_t* merge_counts(const MergeParameters& parameters, const MergeShape& shape, void* workspace);

// Who joins whom: one launch, after a memset of some bytes per image.
cudaError_t decide_merge_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream);

// Writes what goes on: one launch. out.count is K, or 0 for the largest count of the batch; slots that stay beyond K are not written.
// count_out may be null. Numbers in `patch` and `group` outside of 0..P0-1 belong to no slot: nothing is read or written for them, and
// a group's number goes on as it is.
cudaError_t write_merge_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape,
                                  const MergeOutputs& out, int64_t* count_out, void* workspace, cudaStream_t stream);

}  // namespace vitprune
