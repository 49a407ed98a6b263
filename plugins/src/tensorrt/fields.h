// SPDX-License-Identifier: Apache-2.0
//
// Attributes as TensorRT passes them: read from a field collection, and written back for serialisation.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "parameters.h"

namespace vitprune {

// What distinguishes one plugin instance. `fused`: TokenScoreSample instead of TokenSample.
struct PluginConfig {
    bool fused = false;
    SampleParameters sample;
    ScoreParameters score;
};

// Fields a creator announces, without values.
std::vector<nvinfer1::PluginField> announced_fields(bool fused);

// Reads a collection; returns an empty string, or what is wrong with it.
std::string read_fields(const nvinfer1::PluginFieldCollection& collection, PluginConfig& config);

// Values of a configuration laid out as fields. Must outlive the returned collection; not movable, the fields point into it.
class FieldStore {
public:
    FieldStore() = default;
    FieldStore(const FieldStore&) = delete;
    FieldStore& operator=(const FieldStore&) = delete;

    const nvinfer1::PluginFieldCollection* fill(const PluginConfig& config);

private:
    void add_text(const char* name, const char* text);

    int64_t num_samples_{};
    int64_t capacity_{};
    int64_t expected_{};
    int64_t padded_{};
    int64_t prefix_{};
    float threshold_{};
    float scale_{};
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vitprune
