// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/fields.h"

#include <cstring>
#include <iterator>

namespace vitprune {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr const char* kSampleIntegers[] = {"num_samples", "capacity", "expected", "pad_to_capacity"};

// The parser hands integers over in the width that suits it.
bool read_integer(const PluginField& field, int64_t& value) {
    if (field.data == nullptr || field.length < 1) return false;
    switch (field.type) {
        case PluginFieldType::kINT64: std::memcpy(&value, field.data, sizeof(int64_t)); return true;
        case PluginFieldType::kINT32: value = *static_cast<const int32_t*>(field.data); return true;
        case PluginFieldType::kINT16: value = *static_cast<const int16_t*>(field.data); return true;
        case PluginFieldType::kINT8: value = *static_cast<const int8_t*>(field.data); return true;
        default: return false;
    }
}

bool read_float(const PluginField& field, float& value) {
    if (field.data == nullptr || field.length < 1) return false;
    switch (field.type) {
        case PluginFieldType::kFLOAT32: value = *static_cast<const float*>(field.data); return true;
        case PluginFieldType::kFLOAT64: value = static_cast<float>(*static_cast<const double*>(field.data)); return true;
        default: return false;
    }
}

// Text may come with or without its terminating zero.
bool read_text(const PluginField& field, std::string& value) {
    if (field.data == nullptr || field.length < 0 || field.type != PluginFieldType::kCHAR) return false;
    value.assign(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
    value.resize(std::strlen(value.c_str()));
    return true;
}

struct RawFields {
    std::string mode;
    std::string form = "paper";
    VpTokenSampleAttributes sample{nullptr, 1, 0.0f, 0, 0, 0};
    VpTokenScoreAttributes score{nullptr, 0.0f, 1};
};

// Takes one field; false when its type does not suit its name or the name is unknown.
bool take_field(const PluginField& field, bool fused, RawFields& raw) {
    const std::string name = field.name;
    int64_t padded = 0;
    if (name == "mode") return read_text(field, raw.mode);
    if (name == "num_samples") return read_integer(field, raw.sample.num_samples);
    if (name == "threshold") return read_float(field, raw.sample.threshold);
    if (name == "capacity") return read_integer(field, raw.sample.capacity);
    if (name == "expected") return read_integer(field, raw.sample.expected);
    if (name == "pad_to_capacity") {
        const bool known = read_integer(field, padded);
        raw.sample.pad_to_capacity = padded != 0;
        return known;
    }
    if (fused && name == "score_form") return read_text(field, raw.form);
    if (fused && name == "scale") return read_float(field, raw.score.scale);
    if (fused && name == "prefix_tokens") return read_integer(field, raw.score.prefix_tokens);
    return name == "plugin_version" || name == "plugin_namespace";
}

}  // namespace

std::vector<PluginField> announced_fields(bool fused) {
    std::vector<PluginField> fields{{"mode", nullptr, PluginFieldType::kCHAR, 1},
                                    {"threshold", nullptr, PluginFieldType::kFLOAT32, 1}};
    for (const char* name : kSampleIntegers) fields.emplace_back(name, nullptr, PluginFieldType::kINT64, 1);
    if (fused) {
        fields.emplace_back("score_form", nullptr, PluginFieldType::kCHAR, 1);
        fields.emplace_back("scale", nullptr, PluginFieldType::kFLOAT32, 1);
        fields.emplace_back("prefix_tokens", nullptr, PluginFieldType::kINT64, 1);
    }
    for (const char* name : {"plugin_version", "plugin_namespace"}) fields.emplace_back(name, nullptr, PluginFieldType::kCHAR, 1);
    return fields;
}

std::string read_fields(const nvinfer1::PluginFieldCollection& collection, PluginConfig& config) {
    RawFields raw;
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        const PluginField& field = collection.fields[i];
        if (field.name == nullptr) return "a field has no name";
        if (!take_field(field, config.fused, raw)) return "field '" + std::string(field.name) + "' is unknown or of a wrong type";
    }
    raw.sample.mode = raw.mode.c_str();
    raw.score.form = raw.form.c_str();
    int32_t status = check_sample(&raw.sample, config.sample);
    if (status == VP_OK && config.fused) status = check_score(&raw.score, config.score);
    return status == VP_OK ? "" : vp_status_string(status);
}

void FieldStore::add_text(const char* name, const char* text) {
    fields_.emplace_back(name, text, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(text)) + 1);
}

const nvinfer1::PluginFieldCollection* FieldStore::fill(const PluginConfig& config) {
    num_samples_ = config.sample.samples;
    capacity_ = config.sample.capacity;
    expected_ = config.sample.expected;
    padded_ = config.sample.padded;
    prefix_ = config.score.prefix;
    threshold_ = config.sample.threshold;
    scale_ = config.score.scale;
    fields_.clear();
    add_text("mode", mode_name(config.sample.mode));
    fields_.emplace_back("threshold", &threshold_, PluginFieldType::kFLOAT32, 1);
    const int64_t* values[] = {&num_samples_, &capacity_, &expected_, &padded_};
    for (size_t i = 0; i < std::size(kSampleIntegers); ++i) {
        fields_.emplace_back(kSampleIntegers[i], values[i], PluginFieldType::kINT64, 1);
    }
    if (config.fused) {
        add_text("score_form", form_name(config.score.form));
        fields_.emplace_back("scale", &scale_, PluginFieldType::kFLOAT32, 1);
        fields_.emplace_back("prefix_tokens", &prefix_, PluginFieldType::kINT64, 1);
    }
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

}  // namespace vitprune
