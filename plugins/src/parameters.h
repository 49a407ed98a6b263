// SPDX-License-Identifier: Apache-2.0
//
// Checked attributes and sizes: the one place where input is refused.
#pragma once

#include <cstdint>

#include "vitprune_plugin.h"

namespace vitprune {

enum class Mode : int32_t { kPaper, kOfficial, kThreshold };
enum class Form : int32_t { kPerHead, kPooled };

struct SampleParameters {
    Mode mode = Mode::kPaper;
    int32_t samples = 1;
    float threshold = 0.0f;
    int64_t capacity = 0;
    int64_t expected = 0;
    bool padded = false;
};

struct ScoreParameters {
    Form form = Form::kPerHead;
    float scale = 0.0f;  // 0 = 1 / sqrt(D)
    int32_t prefix = 1;
};

struct ScoreShape {
    int32_t batch;
    int32_t heads;
    int32_t patches;
    int32_t prefix;
    int32_t width;
#if defined(__CUDACC__)
    __host__ __device__
#endif
    int32_t keys() const { return prefix + patches; }
};

const char* mode_name(Mode mode);
const char* form_name(Form form);

int32_t check_sample(const VpTokenSampleAttributes* attributes, SampleParameters& parameters);
int32_t check_score(const VpTokenScoreAttributes* attributes, ScoreParameters& parameters);
int32_t check_shape(int64_t batch, int64_t patches);
int32_t check_score_shape(int64_t batch, int64_t heads, int64_t patches, int64_t prefix, int64_t width, ScoreShape& shape);

// Most tokens one image may keep.
int32_t row_limit(const SampleParameters& parameters, int32_t patches);

// Largest K any input can give: an inverse mode keeps at most one token per sampling point.
int32_t max_count(const SampleParameters& parameters, int32_t patches);

// The factor of query . key.
float score_scale(const ScoreParameters& parameters, int32_t width);

}  // namespace vitprune
