// SPDX-License-Identifier: Apache-2.0
//
// Attributes of PruneSite: read from a field collection, and written back for serialisation. Two of them name its tensors (roles.h).
#pragma once

#include "site.h"
#include "tensorrt/field_values.h"
#include "tensorrt/roles.h"

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

// Attributes of how a site scores and samples, which the merging site of ATS has as well.
struct RawSite {
    RawSample sample;
    std::string form, combine = "nothing";
    int64_t heads = 1, prefix_tokens = 0, originals = 0;

    VpPruneSiteAttributes attributes() const;  // points into this
};

// As take_sample_field.
std::optional<bool> take_site_field(const nvinfer1::PluginField& field, RawSite& raw);
void announce_site(std::vector<nvinfer1::PluginField>& fields);
void store_site(FieldStore& store, const SiteParameters& site);

std::vector<nvinfer1::PluginField> announced_site_fields();
std::string read_site_fields(const nvinfer1::PluginFieldCollection& collection, SiteConfig& config);
const nvinfer1::PluginFieldCollection* write_site_fields(const SiteConfig& config, FieldStore& store);

}  // namespace vitprune
