// SPDX-License-Identifier: Apache-2.0
//
// Host side of the kernels, for checked parameters. Nothing here allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "parameters.h"

namespace vitprune {

// Device memory that one launch needs besides its tensors.
size_t sample_workspace(int32_t batch, int32_t patches);
size_t score_workspace(const ScoreShape& shape);

// Where the kept counts int32 [B] lie in a sample workspace after select_on_device.
int32_t* kept_counts(void* workspace);

struct SampleTensors {
    const float* score;
    const uint8_t* valid;
    int64_t* index;
    uint8_t* keep;
    int64_t* count;  // null: the caller knows K already
};

// TokenSample. One launch when K is known before it (padded, or one image), else two.
cudaError_t sample_on_device(const SampleParameters& parameters, const SampleTensors& tensors, int32_t batch, int32_t patches,
                             void* workspace, cudaStream_t stream);

// The two halves, for a caller that must allocate the outputs in between: leaves kept counts and masks in the workspace,
// then writes rows of `count` slots.
cudaError_t select_on_device(const SampleParameters& parameters, const float* score, const uint8_t* valid, int32_t batch,
                             int32_t patches, void* workspace, cudaStream_t stream);
cudaError_t emit_on_device(int64_t count, int64_t* index, uint8_t* keep, int64_t* count_out, int32_t batch, int32_t patches,
                           void* workspace, cudaStream_t stream);

// TokenScoreSample: tensors.score is written too, through `score`.
cudaError_t score_sample_on_device(const ScoreParameters& score_parameters, const SampleParameters& parameters, int32_t dtype,
                                   const void* query, const void* key, const void* value, float* score,
                                   const SampleTensors& tensors, const ScoreShape& shape, void* workspace,
                                   cudaStream_t stream);

}  // namespace vitprune
