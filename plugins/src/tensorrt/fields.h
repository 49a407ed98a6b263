// SPDX-License-Identifier: Apache-2.0
//
// Attributes of TokenSample and TokenScoreSample: read from a field collection, and written back for serialisation.
#pragma once

#include "tensorrt/field_values.h"

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

// Values of a configuration laid out as fields of `store`.
const nvinfer1::PluginFieldCollection* write_fields(const PluginConfig& config, FieldStore& store);

}  // namespace vitprune
