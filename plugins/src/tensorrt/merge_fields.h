// SPDX-License-Identifier: Apache-2.0
//
// Attributes of PairMerge, WardMerge and SampledMerge: read from a field collection, and written back for serialisation.
#pragma once

#include "merge_site.h"
#include "tensorrt/field_values.h"
#include "tensorrt/roles.h"

namespace vitprune {

enum class MergeInput : int32_t {
    kX, kProducts, kGram, kMetric, kAttention, kQuery, kKey, kValue, kScore, kSize, kPatch, kValid, kGroup, kAskedBias
};
enum class MergeOutput : int32_t { kRows, kSize, kBias, kIndex, kKeep, kGroup, kPatch, kKept, kScore, kCount };

// Name and type of a tensor, and the kinds of sites that have it, a bit each.
struct MergeTensorKind {
    const char* name;
    nvinfer1::DataType type;
    uint32_t kinds;
};
const MergeTensorKind& kind_of(MergeInput role);
const MergeTensorKind& kind_of(MergeOutput role);

// Numbers as fields have them; which of them a kind has, a table in merge_fields.cpp says.
struct MergeNumbers {
    int64_t prefix = 0, most = 0, padded = 0, loses = 0, proportional = 0, pairs = 0, by_threshold = 0, rounds = 0, heads = 0;
    float threshold = 0.0f, floor = 0.0f, limit = 0.0f, power = 0.0f, everyone = 0.0f, share = 0.0f;
};

struct MergeConfig {
    MergeKind kind = MergeKind::kPair;
    MergeNumbers numbers;
    MergeParameters merge;             // the same, checked
    std::vector<MergeInput> inputs;    // by position
    std::vector<MergeOutput> outputs;  // by position
};

const char* merge_name(MergeKind kind);

// Whether K follows from the shapes: it is padded, or a constant number of pairs merges.
bool knows_count(const MergeParameters& merge);

std::vector<nvinfer1::PluginField> announced_merge_fields(MergeKind kind);

// config.kind says what is read.
std::string read_merge_fields(const nvinfer1::PluginFieldCollection& collection, MergeConfig& config);
const nvinfer1::PluginFieldCollection* write_merge_fields(const MergeConfig& config, FieldStore& store);

}  // namespace vitprune
