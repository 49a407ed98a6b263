// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/site_fields.h"

namespace vitprune {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr SiteTensorKind kInputs[] = {
    {"x", DataType::kFLOAT, true},   {"valid", DataType::kBOOL},        {"query", DataType::kFLOAT, true},
    {"key", DataType::kFLOAT, true}, {"value", DataType::kFLOAT, true}, {"score", DataType::kFLOAT},
    {"h", DataType::kFLOAT, true},   {"patch", DataType::kINT64},       {"theta", DataType::kFLOAT},
};
constexpr SiteTensorKind kOutputs[] = {
    {"rows", DataType::kFLOAT, true}, {"rows2", DataType::kFLOAT, true}, {"index", DataType::kINT64}, {"keep", DataType::kBOOL},
    {"patch", DataType::kINT64},      {"kept", DataType::kINT64},        {"mask", DataType::kINT32},  {"score_kept", DataType::kFLOAT},
    {"bias", DataType::kFLOAT},       {"score", DataType::kFLOAT},       {"count", DataType::kINT64},
};

// Whether a site of these parameters can do with the tensors that are there.
std::string check_tensors(const SiteConfig& config) {
    static const float there = 0.0f;
    const auto data = [&config](SiteInput role) { return position_of(config.inputs, role) < 0 ? nullptr : &there; };
    SiteInputs in{};
    in.x = data(SiteInput::kX);
    in.query = data(SiteInput::kQuery);
    in.key = data(SiteInput::kKey);
    in.value = data(SiteInput::kValue);
    in.score = data(SiteInput::kScore);
    const int32_t status = check_site_inputs(config.site, in);
    if (status == VP_NULL_POINTER) return "'inputs' lacks a tensor that the form needs";
    if (status != VP_OK) return vp_status_string(status);
    if (position_of(config.outputs, SiteOutput::kRows) < 0) return "'outputs' lacks rows";
    const bool second = position_of(config.outputs, SiteOutput::kRows2) >= 0, h = data(SiteInput::kH) != nullptr;
    if (second != h) return "h and rows2 come together";
    const bool counted = position_of(config.outputs, SiteOutput::kCount) >= 0;
    return counted || config.site.sample.padded ? "" : "'outputs' lacks count, which is the number of rows that are left";
}

}  // namespace

const SiteTensorKind& kind_of(SiteInput role) { return kInputs[static_cast<int32_t>(role)]; }
const SiteTensorKind& kind_of(SiteOutput role) { return kOutputs[static_cast<int32_t>(role)]; }

VpPruneSiteAttributes RawSite::attributes() const {
    VpPruneSiteAttributes raw{sample.attributes, form.c_str(), combine.c_str(), heads, prefix_tokens, originals};
    raw.sample.mode = sample.mode.c_str();
    return raw;
}

std::optional<bool> take_site_field(const PluginField& field, RawSite& raw) {
    const std::string name = field.name;
    if (name == "form") return read_text(field, raw.form);
    if (name == "combine") return read_text(field, raw.combine);
    if (name == "heads") return read_integer(field, raw.heads);
    if (name == "prefix_tokens") return read_integer(field, raw.prefix_tokens);
    if (name == "originals") return read_integer(field, raw.originals);
    return take_sample_field(field, raw.sample);
}

void announce_site(std::vector<PluginField>& fields) {
    for (const char* name : {"form", "combine"}) fields.emplace_back(name, nullptr, PluginFieldType::kCHAR, 1);
    for (const char* name : {"heads", "prefix_tokens", "originals"}) fields.emplace_back(name, nullptr, PluginFieldType::kINT64, 1);
    announce_sample(fields);
}

void store_site(FieldStore& store, const SiteParameters& site) {
    store.text("form", site_form_name(site.form));
    store.text("combine", combine_name(site.combine));
    store.integer("heads", site.heads);
    store.integer("prefix_tokens", site.prefix);
    store.integer("originals", site.originals);
    store.sample(site.sample);
}

std::vector<PluginField> announced_site_fields() {
    std::vector<PluginField> fields;
    for (const char* name : {"inputs", "outputs"}) fields.emplace_back(name, nullptr, PluginFieldType::kCHAR, 1);
    announce_site(fields);
    announce_parser(fields);
    return fields;
}

std::string read_site_fields(const nvinfer1::PluginFieldCollection& collection, SiteConfig& config) {
    RawSite site;
    std::string inputs, outputs;
    const auto take = [&](const PluginField& field) -> std::optional<bool> {
        const std::string name = field.name;
        if (name == "inputs") return read_text(field, inputs);
        if (name == "outputs") return read_text(field, outputs);
        return take_site_field(field, site);
    };
    const std::string problem = read_all(collection, take);
    if (!problem.empty()) return problem;
    const VpPruneSiteAttributes raw = site.attributes();
    const int32_t status = check_site(&raw, config.site);
    if (status != VP_OK) return vp_status_string(status);
    if (!read_roles(inputs, kInputs, config.inputs)) return "'inputs' names no tensors of PruneSite in their order: " + inputs;
    if (!read_roles(outputs, kOutputs, config.outputs)) return "'outputs' names no tensors of PruneSite in their order: " + outputs;
    return check_tensors(config);
}

const nvinfer1::PluginFieldCollection* write_site_fields(const SiteConfig& config, FieldStore& store) {
    store.clear();
    store.text("inputs", role_names(config.inputs));
    store.text("outputs", role_names(config.outputs));
    store_site(store, config.site);
    return store.collection();
}

}  // namespace vitprune
