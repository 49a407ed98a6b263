// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/fields.h"

namespace vitprune {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

std::vector<PluginField> announced_fields(bool fused) {
    std::vector<PluginField> fields;
    announce_sample(fields);
    if (fused) {
        fields.emplace_back("score_form", nullptr, PluginFieldType::kCHAR, 1);
        fields.emplace_back("scale", nullptr, PluginFieldType::kFLOAT32, 1);
        fields.emplace_back("prefix_tokens", nullptr, PluginFieldType::kINT64, 1);
    }
    announce_parser(fields);
    return fields;
}

std::string read_fields(const nvinfer1::PluginFieldCollection& collection, PluginConfig& config) {
    RawSample sample;
    std::string form = "paper";
    VpTokenScoreAttributes score{nullptr, 0.0f, 1};
    const auto take = [&](const PluginField& field) -> std::optional<bool> {
        const std::string name = field.name;
        if (config.fused && name == "score_form") return read_text(field, form);
        if (config.fused && name == "scale") return read_float(field, score.scale);
        if (config.fused && name == "prefix_tokens") return read_integer(field, score.prefix_tokens);
        return take_sample_field(field, sample);
    };
    const std::string problem = read_all(collection, take);
    if (!problem.empty()) return problem;
    sample.attributes.mode = sample.mode.c_str();
    score.form = form.c_str();
    int32_t status = check_sample(&sample.attributes, config.sample);
    if (status == VP_OK && config.fused) status = check_score(&score, config.score);
    return status == VP_OK ? "" : vp_status_string(status);
}

const nvinfer1::PluginFieldCollection* write_fields(const PluginConfig& config, FieldStore& store) {
    store.clear();
    store.sample(config.sample);
    if (config.fused) {
        store.text("score_form", form_name(config.score.form));
        store.number("scale", config.score.scale);
        store.integer("prefix_tokens", config.score.prefix);
    }
    return store.collection();
}

}  // namespace vitprune
