// SPDX-License-Identifier: Apache-2.0
//
// Host side of PruneSite's kernels, for checked parameters. Nothing here allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "site.h"

namespace vitprune {

size_t site_workspace(const SiteShape& shape);

// Where the kept counts int32 [B] lie in a workspace after select_site_on_device.
int32_t* site_counts(const SiteShape& shape, void* workspace);

// Scores and selects: one launch, after a memset of four bytes per image where the score is computed here.
cudaError_t select_site_on_device(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, void* workspace,
                                  cudaStream_t stream);

// Gathers what goes on: one launch. out.count is K, or 0 for the largest count of the batch; count_out and score_out may be null.
cudaError_t write_site_on_device(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape,
                                 const SiteOutputs& out, int64_t* count_out, float* score_out, void* workspace, cudaStream_t stream);

}  // namespace vitprune
