// SPDX-License-Identifier: Apache-2.0
//
// The first launch of each kind of merging site.
#pragma once

#include <cuda_runtime_api.h>

#include "merge_site.h"

namespace vitprune {

cudaError_t decide_pairs_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream);
cudaError_t decide_wards_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream);
cudaError_t decide_sampled_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                     cudaStream_t stream);

}  // namespace vitprune
