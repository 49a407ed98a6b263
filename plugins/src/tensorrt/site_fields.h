// SPDX-License-Identifier: Apache-2.0
//
// Attributes of PruneSite: read from a field collection, and written back for serialisation.
//
// A node of TensorRT has no empty inputs or outputs. So the tensors that a site has stand behind each other without gaps, and two
// attributes name them: inputs="x,query,key,value,h" and outputs="rows,rows2,kept,count", in the order of the tables below.
#pragma once

#include "site.h"
#include "tensorrt/field_values.h"

namespace vitprune {

enum class SiteInput : int32_t { kX, kValid, kQuery, kKey, kValue, kScore, kH, kPatch, kTheta };
enum class SiteOutput : int32_t { kRows, kRows2, kIndex, kKeep, kPatch, kKept, kMask, kScoreKept, kBias, kScore, kCount };

// Name and type of a tensor, by its role.
struct SiteTensorKind {
    const char* name;
    nvinfer1::DataType type;
    bool any_float = false;  // float32, float16 or bfloat16, as the network has it; rows are of x's type, rows2 of h's
};
const SiteTensorKind& kind_of(SiteInput role);
const SiteTensorKind& kind_of(SiteOutput role);

struct SiteConfig {
    SiteParameters site;
    std::vector<SiteInput> inputs;    // by position
    std::vector<SiteOutput> outputs;  // by position
};

// Position of a role, -1 where the site has none.
template <typename Role>
int32_t position_of(const std::vector<Role>& roles, Role role) {
    for (size_t i = 0; i < roles.size(); ++i) {
        if (roles[i] == role) return static_cast<int32_t>(i);
    }
    return -1;
}

std::vector<nvinfer1::PluginField> announced_site_fields();
std::string read_site_fields(const nvinfer1::PluginFieldCollection& collection, SiteConfig& config);
const nvinfer1::PluginFieldCollection* write_site_fields(const SiteConfig& config, FieldStore& store);

}  // namespace vitprune
