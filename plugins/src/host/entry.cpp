// SPDX-License-Identifier: Apache-2.0
//
// C entry points that need no device.
#include <new>

#include "build_info.h"
#include "host/token_sample.h"
#include "host/token_score.h"
#include "parameters.h"
#include "vitprune_plugin.h"

using namespace vitprune;

namespace {

int32_t run_sample(const SampleParameters& parameters, const float* score, const uint8_t* valid, int64_t batch,
                   int64_t patches, int64_t* index, uint8_t* keep, int64_t* count) {
    const Selection selection =
        select_tokens(parameters, score, valid, static_cast<int32_t>(batch), static_cast<int32_t>(patches));
    emit_tokens(selection, index, keep);
    *count = selection.count;
    return VP_OK;
}

}  // namespace

int32_t vp_abi_version(void) { return VP_ABI_VERSION; }

uint32_t vp_features(void) { return VITPRUNE_FEATURES; }

const char* vp_build_info(void) { return kBuildInfo; }

const char* vp_status_string(int32_t status) {
    switch (status) {
        case VP_OK: return "ok";
        case VP_NULL_POINTER: return "a required pointer is null";
        case VP_UNKNOWN_MODE: return "unknown mode; one of inverse_transform, inverse_transform_official, threshold";
        case VP_BAD_PATCHES: return "the number of patches must lie in 1..16384";
        case VP_BAD_BATCH: return "the batch size must lie in 1..1048576";
        case VP_BAD_NUM_SAMPLES: return "num_samples must lie in 1..65536";
        case VP_BAD_CAPACITY: return "capacity must not be negative; 0 means no limit";
        case VP_BAD_EXPECTED: return "expected must not be negative; 0 means unknown";
        case VP_SMALL_WORKSPACE: return "the workspace is smaller than the workspace function asks for";
        case VP_UNKNOWN_FORM: return "unknown score form; one of the forms in vitprune_plugin.h";
        case VP_UNKNOWN_DTYPE: return "unknown element type; one of float32, float16, bfloat16";
        case VP_BAD_HEADS: return "heads must lie in 1..1024 and the head width in 1..4096";
        case VP_BAD_PREFIX: return "prefix_tokens must lie in 0..16384";
        case VP_BAD_SCALE: return "scale must be finite and not negative; 0 means 1/sqrt(head width)";
        case VP_OUT_OF_MEMORY: return "out of host memory";
        case VP_CUDA_ERROR: return "CUDA refused a launch";
        case VP_UNKNOWN_COMBINE: return "unknown way to combine; one of nothing, weighted, mean";
        case VP_BAD_ENDS: return "ends of images must rise from 0 to the number of rows";
        case VP_UNKNOWN_KIND: return "unknown kind of merging; one of pair, ward, sampled";
        case VP_BAD_MERGE: return "pairs and rounds must not be negative, and the attributes of sampling and merging must agree";
        case VP_NO_ROOM: return "more rows stay than there is room";
        default: return "unknown status";
    }
}

int32_t vp_token_sample_max_count(const VpTokenSampleAttributes* attributes, int64_t patches, int64_t* count) {
    SampleParameters parameters;
    int32_t status = check_sample(attributes, parameters);
    if (status == VP_OK) status = check_shape(1, patches);
    if (status == VP_OK && count == nullptr) status = VP_NULL_POINTER;
    if (status == VP_OK) *count = max_count(parameters, static_cast<int32_t>(patches));
    return status;
}

int32_t vp_token_sample_cpu(const VpTokenSampleAttributes* attributes, const float* score, const uint8_t* valid, int64_t batch,
                            int64_t patches, int64_t* index, uint8_t* keep, int64_t* count) {
    SampleParameters parameters;
    int32_t status = check_sample(attributes, parameters);
    if (status == VP_OK) status = check_shape(batch, patches);
    if (status == VP_OK && !(score && valid && index && keep && count)) status = VP_NULL_POINTER;
    if (status != VP_OK) return status;
    try {
        return run_sample(parameters, score, valid, batch, patches, index, keep, count);
    } catch (const std::bad_alloc&) {
        return VP_OUT_OF_MEMORY;
    }
}

int32_t vp_token_score_sample_cpu(const VpTokenScoreAttributes* score_attributes, const VpTokenSampleAttributes* attributes,
                                  int32_t dtype, const void* query, const void* key, const void* value, const uint8_t* valid,
                                  int64_t batch, int64_t heads, int64_t patches, int64_t width, float* score, int64_t* index,
                                  uint8_t* keep, int64_t* count) {
    SampleParameters parameters;
    ScoreParameters score_parameters;
    ScoreShape shape;
    int32_t status = check_score(score_attributes, score_parameters);
    if (status == VP_OK) status = check_sample(attributes, parameters);
    if (status == VP_OK) status = check_score_shape(batch, heads, patches, score_parameters.prefix, width, shape);
    if (status == VP_OK && (dtype < VP_FLOAT32 || dtype > VP_BFLOAT16)) status = VP_UNKNOWN_DTYPE;
    if (status == VP_OK && !(query && key && value && valid && score && index && keep && count)) status = VP_NULL_POINTER;
    if (status != VP_OK) return status;
    try {
        token_score(score_parameters, dtype, query, key, value, valid, shape, score);
        return run_sample(parameters, score, valid, batch, patches, index, keep, count);
    } catch (const std::bad_alloc&) {
        return VP_OUT_OF_MEMORY;
    }
}
