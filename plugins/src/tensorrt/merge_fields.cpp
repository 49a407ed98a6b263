// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/merge_fields.h"

#include <set>

#include "tensorrt/site_fields.h"

namespace vitprune {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr uint32_t bit(MergeKind kind) { return 1u << static_cast<uint32_t>(kind); }
constexpr uint32_t kPair = bit(MergeKind::kPair), kWard = bit(MergeKind::kWard), kSampled = bit(MergeKind::kSampled);
constexpr uint32_t kAll = kPair | kWard | kSampled;

constexpr MergeTensorKind kInputs[] = {
    {"x", DataType::kFLOAT, kAll},
    {"products", DataType::kFLOAT, kPair},
    {"gram", DataType::kFLOAT, kWard},
    {"metric", DataType::kFLOAT, kPair | kSampled},
    {"attention", DataType::kFLOAT, kWard},
    {"query", DataType::kFLOAT, kWard | kSampled},
    {"key", DataType::kFLOAT, kWard | kSampled},
    {"value", DataType::kFLOAT, kSampled},
    {"score", DataType::kFLOAT, kSampled},
    {"size", DataType::kFLOAT, kAll},
    {"patch", DataType::kINT64, kAll},
    {"valid", DataType::kBOOL, kAll},
    {"group", DataType::kINT64, kAll},
    {"asked_bias", DataType::kFLOAT, kWard | kSampled},
};
constexpr MergeTensorKind kOutputs[] = {
    {"rows", DataType::kFLOAT, kAll},  {"size", DataType::kFLOAT, kAll},  {"bias", DataType::kFLOAT, kAll},
    {"index", DataType::kINT64, kAll}, {"keep", DataType::kBOOL, kAll},   {"group", DataType::kINT64, kAll},
    {"patch", DataType::kINT64, kAll}, {"kept", DataType::kINT64, kAll},  {"score", DataType::kFLOAT, kSampled},
    {"count", DataType::kINT64, kAll},
};

template <typename Value>
struct Number {
    const char* name;
    Value MergeNumbers::*at;
    uint32_t kinds;
};
constexpr Number<int64_t> kWholes[] = {
    {"prefix", &MergeNumbers::prefix, kAll},
    {"most", &MergeNumbers::most, kAll},
    {"padded", &MergeNumbers::padded, kAll},
    {"loses", &MergeNumbers::loses, kAll},
    {"proportional", &MergeNumbers::proportional, kAll},
    {"pairs", &MergeNumbers::pairs, kPair | kWard},
    {"by_threshold", &MergeNumbers::by_threshold, kPair},
    {"rounds", &MergeNumbers::rounds, kWard},
    {"heads", &MergeNumbers::heads, kWard},
};
constexpr Number<float> kReals[] = {
    {"floor", &MergeNumbers::floor, kPair | kSampled}, {"threshold", &MergeNumbers::threshold, kPair},
    {"limit", &MergeNumbers::limit, kWard},            {"power", &MergeNumbers::power, kWard},
    {"everyone", &MergeNumbers::everyone, kWard},      {"share", &MergeNumbers::share, kWard},
};

// Calls use(number) for the whole and the other numbers of a kind.
template <typename Use>
void each_number(MergeKind kind, const Use& use) {
    for (const auto& one : kWholes) {
        if (one.kinds & bit(kind)) use(one);
    }
    for (const auto& one : kReals) {
        if (one.kinds & bit(kind)) use(one);
    }
}

bool read_number(const PluginField& field, int64_t& value) { return read_integer(field, value); }
bool read_number(const PluginField& field, float& value) { return read_float(field, value); }
void store_number(FieldStore& store, const char* name, int64_t value) { store.integer(name, value); }
void store_number(FieldStore& store, const char* name, float value) { store.number(name, value); }
PluginFieldType type_of(int64_t) { return PluginFieldType::kINT64; }
PluginFieldType type_of(float) { return PluginFieldType::kFLOAT32; }

VpMergeAttributes attributes_of(MergeKind kind, const MergeNumbers& n, const VpPruneSiteAttributes& site) {
    return {merge_kind_name(kind), n.prefix, n.most, n.padded != 0, n.loses != 0, n.proportional != 0, n.floor, n.pairs,
            n.by_threshold != 0, n.threshold, n.limit, n.rounds, n.power, n.everyone, n.share, site};
}

// Name of a tensor that a kind does not have, "" where there is none.
template <typename Role>
std::string foreign(const std::vector<Role>& roles, MergeKind kind) {
    for (const Role role : roles) {
        if (!(kind_of(role).kinds & bit(kind))) return kind_of(role).name;
    }
    return "";
}

// Whether a site of these parameters can do with the tensors that are there.
std::string check_tensors(const MergeConfig& config) {
    static const float there = 0.0f;
    static const int64_t number = 0;
    const std::string unread = foreign(config.inputs, config.kind), unwritten = foreign(config.outputs, config.kind);
    if (!unread.empty()) return "'inputs' names what this operator does not read: " + unread;
    if (!unwritten.empty()) return "'outputs' names what this operator does not write: " + unwritten;
    const auto data = [&config](MergeInput role) { return position_of(config.inputs, role) < 0 ? nullptr : &there; };
    const bool followed = position_of(config.inputs, MergeInput::kGroup) >= 0;
    MergeInputs in{};
    in.x = data(MergeInput::kX);
    in.products = data(MergeInput::kProducts);
    in.metric = data(MergeInput::kMetric);
    in.gram = data(MergeInput::kGram);
    in.attention = data(MergeInput::kAttention);
    in.query = data(MergeInput::kQuery);
    in.key = data(MergeInput::kKey);
    in.value = data(MergeInput::kValue);
    in.score = data(MergeInput::kScore);
    in.group = followed ? &number : nullptr;
    const MergeShape least{1, 1, config.merge.prefix, 1, static_cast<int32_t>(config.numbers.heads), 1, 1};
    const int32_t status = check_merge_inputs(config.merge, least, in);
    if (status == VP_NULL_POINTER) return "'inputs' lacks a tensor that the site needs";
    if (status != VP_OK) return vp_status_string(status);
    if (in.query == nullptr && position_of(config.inputs, MergeInput::kAskedBias) >= 0) return "asked_bias belongs to a query";
    if (position_of(config.outputs, MergeOutput::kRows) < 0) return "'outputs' lacks rows";
    if (followed != (position_of(config.outputs, MergeOutput::kGroup) >= 0)) return "group is read and written";
    const bool counted = position_of(config.outputs, MergeOutput::kCount) >= 0;
    return counted || knows_count(config.merge) ? "" : "'outputs' lacks count, which is the number of rows that are left";
}

}  // namespace

const char* merge_name(MergeKind kind) {
    constexpr const char* kNames[] = {"PairMerge", "WardMerge", "SampledMerge"};
    return kNames[static_cast<int32_t>(kind)];
}

const MergeTensorKind& kind_of(MergeInput role) { return kInputs[static_cast<int32_t>(role)]; }
const MergeTensorKind& kind_of(MergeOutput role) { return kOutputs[static_cast<int32_t>(role)]; }

bool knows_count(const MergeParameters& merge) {
    return merge.padded || (merge.kind == MergeKind::kPair && !merge.pair.by_threshold);
}

std::vector<PluginField> announced_merge_fields(MergeKind kind) {
    std::vector<PluginField> fields;
    for (const char* name : {"inputs", "outputs"}) fields.emplace_back(name, nullptr, PluginFieldType::kCHAR, 1);
    each_number(kind, [&fields](const auto& one) { fields.emplace_back(one.name, nullptr, type_of(MergeNumbers().*one.at), 1); });
    if (kind == MergeKind::kSampled) announce_site(fields);
    announce_parser(fields);
    return fields;
}

std::string read_merge_fields(const nvinfer1::PluginFieldCollection& collection, MergeConfig& config) {
    RawSite site;
    std::string inputs, outputs;
    std::set<std::string> seen;
    const auto take = [&](const PluginField& field) -> std::optional<bool> {
        const std::string name = field.name;
        seen.insert(name);
        if (name == "inputs") return read_text(field, inputs);
        if (name == "outputs") return read_text(field, outputs);
        std::optional<bool> taken;
        each_number(config.kind, [&](const auto& one) {
            if (name == one.name) taken = read_number(field, config.numbers.*one.at);
        });
        return taken || config.kind != MergeKind::kSampled ? taken : take_site_field(field, site);
    };
    std::string problem = read_all(collection, take);
    each_number(config.kind, [&](const auto& one) {
        if (problem.empty() && seen.count(one.name) == 0) problem = std::string("there is no field '") + one.name + "'";
    });
    if (!problem.empty()) return problem;
    const VpMergeAttributes raw = attributes_of(config.kind, config.numbers, site.attributes());
    const int32_t status = check_merge(&raw, config.merge);
    if (status != VP_OK) return vp_status_string(status);
    const std::string kind = merge_name(config.kind);
    if (config.numbers.heads < 0 || config.numbers.heads > 1024) return vp_status_string(VP_BAD_HEADS);
    if (!read_roles(inputs, kInputs, config.inputs)) return "'inputs' names no tensors of " + kind + " in their order: " + inputs;
    if (!read_roles(outputs, kOutputs, config.outputs)) return "'outputs' names no tensors of " + kind + " in their order: " + outputs;
    return check_tensors(config);
}

const nvinfer1::PluginFieldCollection* write_merge_fields(const MergeConfig& config, FieldStore& store) {
    store.clear();
    store.text("inputs", role_names(config.inputs));
    store.text("outputs", role_names(config.outputs));
    each_number(config.kind, [&](const auto& one) { store_number(store, one.name, config.numbers.*one.at); });
    if (config.kind == MergeKind::kSampled) store_site(store, config.merge.site);
    return store.collection();
}

}  // namespace vitprune
