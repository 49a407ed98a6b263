// SPDX-License-Identifier: Apache-2.0
//
// C entry points on device memory.
#include "cuda/launch.h"
#include "parameters.h"
#include "vitprune_plugin.h"

using namespace vitprune;

int32_t vp_token_sample_workspace(int64_t batch, int64_t patches, size_t* bytes) {
    int32_t status = check_shape(batch, patches);
    if (status == VP_OK && bytes == nullptr) status = VP_NULL_POINTER;
    if (status == VP_OK) *bytes = sample_workspace(static_cast<int32_t>(batch), static_cast<int32_t>(patches));
    return status;
}

int32_t vp_token_sample_cuda(const VpTokenSampleAttributes* attributes, const float* score, const uint8_t* valid,
                             int64_t batch, int64_t patches, void* workspace, size_t workspace_bytes, int64_t* index,
                             uint8_t* keep, int64_t* count, void* stream) {
    SampleParameters parameters;
    size_t needed = 0;
    int32_t status = check_sample(attributes, parameters);
    if (status == VP_OK) status = vp_token_sample_workspace(batch, patches, &needed);
    if (status == VP_OK && !(score && valid && workspace && index && keep && count)) status = VP_NULL_POINTER;
    if (status == VP_OK && workspace_bytes < needed) status = VP_SMALL_WORKSPACE;
    if (status != VP_OK) return status;
    const cudaError_t error =
        sample_on_device(parameters, {score, valid, index, keep, count}, static_cast<int32_t>(batch),
                         static_cast<int32_t>(patches), workspace, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? VP_OK : VP_CUDA_ERROR;
}

int32_t vp_token_score_sample_workspace(int64_t batch, int64_t heads, int64_t patches, int64_t prefix_tokens, size_t* bytes) {
    ScoreShape shape;
    int32_t status = check_score_shape(batch, heads, patches, prefix_tokens, 1, shape);
    if (status == VP_OK && bytes == nullptr) status = VP_NULL_POINTER;
    if (status == VP_OK) *bytes = score_workspace(shape);
    return status;
}

int32_t vp_token_score_sample_cuda(const VpTokenScoreAttributes* score_attributes, const VpTokenSampleAttributes* attributes,
                                   int32_t dtype, const void* query, const void* key, const void* value, const uint8_t* valid,
                                   int64_t batch, int64_t heads, int64_t patches, int64_t width, void* workspace,
                                   size_t workspace_bytes, float* score, int64_t* index, uint8_t* keep, int64_t* count,
                                   void* stream) {
    SampleParameters parameters;
    ScoreParameters score_parameters;
    ScoreShape shape;
    int32_t status = check_score(score_attributes, score_parameters);
    if (status == VP_OK) status = check_sample(attributes, parameters);
    if (status == VP_OK) status = check_score_shape(batch, heads, patches, score_parameters.prefix, width, shape);
    if (status == VP_OK && (dtype < VP_FLOAT32 || dtype > VP_BFLOAT16)) status = VP_UNKNOWN_DTYPE;
    if (status == VP_OK && !(query && key && value && valid && workspace && score && index && keep && count)) {
        status = VP_NULL_POINTER;
    }
    if (status == VP_OK && workspace_bytes < score_workspace(shape)) status = VP_SMALL_WORKSPACE;
    if (status != VP_OK) return status;
    const cudaError_t error =
        score_sample_on_device(score_parameters, parameters, dtype, query, key, value, score,
                               {score, valid, index, keep, count}, shape, workspace, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? VP_OK : VP_CUDA_ERROR;
}
