// SPDX-License-Identifier: Apache-2.0
//
// Values of fields, read as TensorRT passes them and kept as it takes them back for serialisation.
#pragma once

#include <NvInferRuntime.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "parameters.h"

namespace vitprune {

// Whether a field has a type that suits, and its value. Text may come with or without its terminating zero.
bool read_integer(const nvinfer1::PluginField& field, int64_t& value);
bool read_float(const nvinfer1::PluginField& field, float& value);
bool read_text(const nvinfer1::PluginField& field, std::string& value);

// The attributes of sampling, which all operators have.
struct RawSample {
    std::string mode;
    VpTokenSampleAttributes attributes{nullptr, 1, 0.0f, 0, 0, 0};
};

// Takes one field; whether its type suits its name, nothing when the name is none of these.
std::optional<bool> take_sample_field(const nvinfer1::PluginField& field, RawSample& raw);

// Reads all fields of a collection with take(field), which returns like take_sample_field; an empty string, or what is wrong.
template <typename Take>
std::string read_all(const nvinfer1::PluginFieldCollection& collection, const Take& take) {
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        const nvinfer1::PluginField& field = collection.fields[i];
        if (field.name == nullptr) return "a field has no name";
        const std::string name = field.name;
        const bool of_parser = name == "plugin_version" || name == "plugin_namespace";
        if (!of_parser && !take(field).value_or(false)) return "field '" + name + "' is unknown or of a wrong type";
    }
    return "";
}

void announce_sample(std::vector<nvinfer1::PluginField>& fields);
void announce_parser(std::vector<nvinfer1::PluginField>& fields);

// Fields with values of their own. Must outlive what collection() returns; not movable, the fields point into it.
class FieldStore {
public:
    FieldStore() = default;
    FieldStore(const FieldStore&) = delete;
    FieldStore& operator=(const FieldStore&) = delete;

    void clear();
    void text(const char* name, const std::string& value);
    void integer(const char* name, int64_t value);
    void number(const char* name, float value);
    void sample(const SampleParameters& parameters);
    const nvinfer1::PluginFieldCollection* collection();

private:
    std::deque<std::string> texts_;
    std::deque<int64_t> integers_;
    std::deque<float> numbers_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vitprune
