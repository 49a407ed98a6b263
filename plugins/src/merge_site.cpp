// SPDX-License-Identifier: Apache-2.0
#include "merge_site.h"

#include <algorithm>
#include <cstring>

namespace vitprune {
namespace {

constexpr const char* kKinds[] = {"pair", "ward", "sampled"};

}  // namespace

const char* merge_kind_name(MergeKind kind) { return kKinds[static_cast<int32_t>(kind)]; }

int32_t check_merge(const VpMergeAttributes* attributes, MergeParameters& parameters) {
    if (attributes == nullptr || attributes->kind == nullptr) return VP_NULL_POINTER;
    const auto found = std::find_if(kKinds, kKinds + 3, [&](const char* one) { return std::strcmp(one, attributes->kind) == 0; });
    if (found == kKinds + 3) return VP_UNKNOWN_KIND;
    parameters.kind = static_cast<MergeKind>(found - kKinds);
    if (attributes->prefix_tokens < 0 || attributes->prefix_tokens > VP_MAX_PATCHES) return VP_BAD_PREFIX;
    const bool padded = attributes->padded != 0;
    if (attributes->most < 0 || attributes->most > VP_MAX_PATCHES || (padded && attributes->most == 0)) return VP_BAD_CAPACITY;
    const bool ward = parameters.kind == MergeKind::kWard;
    if (attributes->rounds < 0 || attributes->pairs < (ward ? -1 : 0)) return VP_BAD_MERGE;
    parameters.prefix = static_cast<int32_t>(attributes->prefix_tokens);
    parameters.most = attributes->most;
    parameters.padded = padded;
    parameters.loses = attributes->loses != 0;
    parameters.proportional = attributes->proportional != 0;
    parameters.floor = attributes->floor;
    parameters.pair = {attributes->pairs, attributes->by_threshold != 0, attributes->threshold};
    parameters.ward = {attributes->limit, attributes->pairs,    attributes->rounds,
                       attributes->power, attributes->everyone, attributes->share};
    if (parameters.kind != MergeKind::kSampled) return VP_OK;
    const int32_t status = check_site(&attributes->site, parameters.site);
    if (status != VP_OK) return status;
    const bool alike = parameters.site.prefix == parameters.prefix && parameters.site.combine == Combine::kNothing &&
                       parameters.site.sample.padded == padded;
    return alike ? VP_OK : VP_BAD_MERGE;
}

int32_t check_merge_shape(const MergeParameters& parameters, const VpMergeSizes& sizes, MergeShape& shape) {
    constexpr int64_t kWidest = 1 << 20;
    const MergeKind kind = parameters.kind;
    const int64_t heads = kind == MergeKind::kSampled ? parameters.site.heads : kind == MergeKind::kWard ? sizes.heads : 1;
    const int64_t depth = std::max<int64_t>(sizes.depth, kind == MergeKind::kWard ? 1 : sizes.depth);
    ScoreShape checked;
    const int64_t head_width = kind == MergeKind::kPair ? 1 : depth;  // a metric may be as wide as x
    const int32_t status =
        check_score_shape(sizes.batch, std::max<int64_t>(heads, 1), sizes.patches, parameters.prefix, head_width, checked);
    if (status != VP_OK) return status;
    if (heads < 0 || depth < 1 || depth > kWidest || sizes.width < 1 || sizes.width > kWidest) return VP_BAD_HEADS;
    if (kind == MergeKind::kPair && sizes.patches < 1 + first_of_b(parameters.prefix)) return VP_BAD_PATCHES;  // B is empty
    if (sizes.originals < 0 || sizes.originals > VP_MAX_PATCHES) return VP_BAD_PATCHES;
    shape = {checked.batch, checked.patches, checked.prefix, static_cast<int32_t>(sizes.width), static_cast<int32_t>(heads),
             static_cast<int32_t>(depth), static_cast<int32_t>(sizes.originals)};
    return VP_OK;
}

int32_t check_merge_inputs(const MergeParameters& parameters, const MergeShape& shape, const MergeInputs& in) {
    if (in.x == nullptr) return VP_NULL_POINTER;
    if (in.group != nullptr && shape.originals < (in.patch == nullptr ? shape.patches : 1)) return VP_BAD_PATCHES;
    switch (parameters.kind) {
        case MergeKind::kPair: return in.products != nullptr && in.metric != nullptr ? VP_OK : VP_NULL_POINTER;
        case MergeKind::kWard:
            if (in.gram == nullptr || (in.query == nullptr) != (in.key == nullptr)) return VP_NULL_POINTER;
            if (in.query != nullptr) return shape.prefix < 1 ? VP_BAD_PREFIX : shape.heads < 1 ? VP_BAD_HEADS : VP_OK;
            return in.attention != nullptr || parameters.ward.power == 0.0f ? VP_OK : VP_NULL_POINTER;
        case MergeKind::kSampled:
            if (in.metric == nullptr) return VP_NULL_POINTER;
            return check_site_inputs(parameters.site, scoring_inputs(in, shape, parameters.kind));
    }
    return VP_UNKNOWN_KIND;
}

MergeInputs merge_inputs(const VpMergeTensors& t) {
    return {t.x, t.products, t.metric, t.gram, t.attention, t.query, t.key, t.value, t.score, t.bias, t.size, t.patch, t.valid, t.group};
}

MergeOutputs merge_outputs(const VpMergeTensors& t, int64_t count) {
    return {t.rows, t.size_out, t.bias_out, t.index, t.keep, t.group_out, t.patch_out, t.kept, t.score_out, count};
}

int64_t merge_limit(const MergeParameters& parameters, int32_t patches) {
    if (parameters.padded) return parameters.most;
    if (parameters.kind == MergeKind::kSampled) return max_count(parameters.site.sample, patches);
    const bool bounded = parameters.kind == MergeKind::kWard && parameters.most > 0;
    return bounded ? std::min<int64_t>(parameters.most, patches) : patches;
}

SiteInputs scoring_inputs(const MergeInputs& in, const MergeShape& shape, MergeKind kind) {
    SiteInputs scoring{in.x, nullptr, in.query, in.key, in.value, in.score, nullptr, in.valid, in.patch, in.bias, 1};
    if (kind == MergeKind::kWard) {  // pads are hidden by the bias alone
        scoring.valid = nullptr;
        scoring.query_rows = shape.tokens();
    }
    return scoring;
}

SiteShape scoring_shape(const MergeShape& shape) {
    return {shape.batch, shape.patches, shape.prefix, shape.width, 0, shape.heads, shape.depth};
}

}  // namespace vitprune
