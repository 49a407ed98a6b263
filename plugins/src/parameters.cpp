// SPDX-License-Identifier: Apache-2.0
#include "parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vitprune {
namespace {

constexpr const char* kModes[] = {"inverse_transform", "inverse_transform_official", "threshold"};
constexpr const char* kForms[] = {"paper", "official"};
constexpr int64_t kMaxBatch = 1 << 20;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxWidth = 4096;

// Position of `name` in a table of names, -1 when it is none of them.
template <size_t Count>
int32_t position(const char* const (&table)[Count], const char* name) {
    for (size_t i = 0; i < Count; ++i) {
        if (std::strcmp(table[i], name) == 0) return static_cast<int32_t>(i);
    }
    return -1;
}

}  // namespace

const char* mode_name(Mode mode) { return kModes[static_cast<int32_t>(mode)]; }
const char* form_name(Form form) { return kForms[static_cast<int32_t>(form)]; }

int32_t check_sample(const VpTokenSampleAttributes* attributes, SampleParameters& parameters) {
    if (attributes == nullptr || attributes->mode == nullptr) return VP_NULL_POINTER;
    const int32_t mode = position(kModes, attributes->mode);
    if (mode < 0) return VP_UNKNOWN_MODE;
    parameters.mode = static_cast<Mode>(mode);
    const bool sampling = parameters.mode != Mode::kThreshold;
    if (sampling && (attributes->num_samples < 1 || attributes->num_samples > VP_MAX_SAMPLES)) return VP_BAD_NUM_SAMPLES;
    if (attributes->capacity < 0) return VP_BAD_CAPACITY;
    if (attributes->expected < 0) return VP_BAD_EXPECTED;
    parameters.samples = sampling ? static_cast<int32_t>(attributes->num_samples) : 1;
    parameters.threshold = attributes->threshold;
    parameters.capacity = attributes->capacity;
    parameters.expected = attributes->expected;
    parameters.padded = attributes->pad_to_capacity != 0;
    return VP_OK;
}

int32_t check_score(const VpTokenScoreAttributes* attributes, ScoreParameters& parameters) {
    if (attributes == nullptr || attributes->form == nullptr) return VP_NULL_POINTER;
    const int32_t form = position(kForms, attributes->form);
    if (form < 0) return VP_UNKNOWN_FORM;
    if (!std::isfinite(attributes->scale) || attributes->scale < 0.0f) return VP_BAD_SCALE;
    if (attributes->prefix_tokens < 0 || attributes->prefix_tokens > VP_MAX_PATCHES) return VP_BAD_PREFIX;
    parameters.form = static_cast<Form>(form);
    parameters.scale = attributes->scale;
    parameters.prefix = static_cast<int32_t>(attributes->prefix_tokens);
    return VP_OK;
}

int32_t check_shape(int64_t batch, int64_t patches) {
    if (patches < 1 || patches > VP_MAX_PATCHES) return VP_BAD_PATCHES;
    if (batch < 1 || batch > kMaxBatch) return VP_BAD_BATCH;
    return VP_OK;
}

int32_t check_score_shape(int64_t batch, int64_t heads, int64_t patches, int64_t prefix, int64_t width, ScoreShape& shape) {
    const int32_t status = check_shape(batch, patches);
    if (status != VP_OK) return status;
    if (heads < 1 || heads > kMaxHeads || width < 1 || width > kMaxWidth) return VP_BAD_HEADS;
    if (prefix < 0 || prefix > VP_MAX_PATCHES) return VP_BAD_PREFIX;
    shape = {static_cast<int32_t>(batch), static_cast<int32_t>(heads), static_cast<int32_t>(patches),
             static_cast<int32_t>(prefix), static_cast<int32_t>(width)};
    return VP_OK;
}

int32_t row_limit(const SampleParameters& parameters, int32_t patches) {
    if (parameters.capacity <= 0) return patches;
    return static_cast<int32_t>(std::min<int64_t>(parameters.capacity, patches));
}

int32_t max_count(const SampleParameters& parameters, int32_t patches) {
    const int32_t limit = row_limit(parameters, patches);
    if (parameters.padded || parameters.mode == Mode::kThreshold) return limit;
    return std::min(limit, parameters.samples);
}

float score_scale(const ScoreParameters& parameters, int32_t width) {
    return parameters.scale > 0.0f ? parameters.scale : 1.0f / std::sqrt(static_cast<float>(width));
}

}  // namespace vitprune
