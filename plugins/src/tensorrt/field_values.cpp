// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/field_values.h"

#include <cstring>

namespace vitprune {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

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

bool read_text(const PluginField& field, std::string& value) {
    if (field.data == nullptr || field.length < 0 || field.type != PluginFieldType::kCHAR) return false;
    value.assign(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
    value.resize(std::strlen(value.c_str()));
    return true;
}

std::optional<bool> take_sample_field(const PluginField& field, RawSample& raw) {
    const std::string name = field.name;
    int64_t padded = 0;
    if (name == "mode") return read_text(field, raw.mode);
    if (name == "num_samples") return read_integer(field, raw.attributes.num_samples);
    if (name == "threshold") return read_float(field, raw.attributes.threshold);
    if (name == "capacity") return read_integer(field, raw.attributes.capacity);
    if (name == "expected") return read_integer(field, raw.attributes.expected);
    if (name != "pad_to_capacity") return std::nullopt;
    const bool known = read_integer(field, padded);
    raw.attributes.pad_to_capacity = padded != 0;
    return known;
}

void announce_sample(std::vector<PluginField>& fields) {
    fields.emplace_back("mode", nullptr, PluginFieldType::kCHAR, 1);
    fields.emplace_back("threshold", nullptr, PluginFieldType::kFLOAT32, 1);
    for (const char* name : {"num_samples", "capacity", "expected", "pad_to_capacity"}) {
        fields.emplace_back(name, nullptr, PluginFieldType::kINT64, 1);
    }
}

void announce_parser(std::vector<PluginField>& fields) {
    for (const char* name : {"plugin_version", "plugin_namespace"}) fields.emplace_back(name, nullptr, PluginFieldType::kCHAR, 1);
}

void FieldStore::clear() {
    texts_.clear();
    integers_.clear();
    numbers_.clear();
    fields_.clear();
}

void FieldStore::text(const char* name, const std::string& value) {
    texts_.push_back(value);
    fields_.emplace_back(name, texts_.back().c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size()) + 1);
}

void FieldStore::integer(const char* name, int64_t value) {
    integers_.push_back(value);
    fields_.emplace_back(name, &integers_.back(), PluginFieldType::kINT64, 1);
}

void FieldStore::number(const char* name, float value) {
    numbers_.push_back(value);
    fields_.emplace_back(name, &numbers_.back(), PluginFieldType::kFLOAT32, 1);
}

void FieldStore::sample(const SampleParameters& parameters) {
    text("mode", mode_name(parameters.mode));
    number("threshold", parameters.threshold);
    integer("num_samples", parameters.samples);
    integer("capacity", parameters.capacity);
    integer("expected", parameters.expected);
    integer("pad_to_capacity", parameters.padded);
}

const nvinfer1::PluginFieldCollection* FieldStore::collection() {
    collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    return &collection_;
}

}  // namespace vitprune
