// SPDX-License-Identifier: Apache-2.0
//
// Sizes of a call of a merging site, from the shapes of its inputs.
#pragma once

#include "tensorrt/merge_fields.h"
#include "tensorrt/site_shapes.h"

namespace vitprune {

// Returns an empty string and the sizes, or which input does not fit; sizes and stated as for site_sizes.
template <typename Sizes, typename Stated>
std::string merge_sizes(const MergeConfig& config, const Sizes& sizes, const Stated& stated, MergeShape& shape) {
    const auto of = [&](MergeInput role) {
        const int32_t position = position_of(config.inputs, role);
        return position < 0 ? TensorShape{} : shape_of(sizes(position));
    };
    const auto width_of = [&of](MergeInput role) {
        const TensorShape one = of(role);
        return one.size() == 3 ? one[2] : 0;
    };
    const TensorShape x = of(MergeInput::kX), group = of(MergeInput::kGroup);
    if (x.size() != 3) return "x must have the shape [batch, tokens, width]";
    const bool ward = config.kind == MergeKind::kWard, numbered = position_of(config.inputs, MergeInput::kPatch) >= 0;
    const int64_t batch = x[0], tokens = x[1], prefix = config.merge.prefix, patches = tokens - prefix;
    const int64_t heads = ward ? config.numbers.heads : config.kind == MergeKind::kSampled ? config.merge.site.heads : 1;
    const int64_t row = width_of(ward ? MergeInput::kKey : MergeInput::kMetric);  // of all heads
    if (heads > 0 && row % heads != 0) return "heads must divide the width of the keys";
    const int64_t depth = heads > 0 ? row / heads : 0, originals = group.size() == 2 ? group[1] : 0;
    const int32_t status = check_merge_shape(config.merge, {batch, patches, x[2], ward ? heads : 0, depth, originals}, shape);
    if (status != VP_OK) return vp_status_string(status);
    const int64_t even = members_of(first_of_a(shape.prefix), shape.patches), odd = members_of(first_of_b(shape.prefix), shape.patches);
    for (size_t i = 0; i < config.inputs.size(); ++i) {
        const TensorShape given = shape_of(stated(static_cast<int32_t>(i)));
        bool good = true;
        switch (config.inputs[i]) {
            case MergeInput::kX: break;
            case MergeInput::kProducts: good = fits(given, {batch, even, odd}); break;
            case MergeInput::kGram: good = fits(given, {batch, patches, patches}); break;
            case MergeInput::kAttention:
                good = fits(given, heads > 0 ? TensorShape{batch, tokens, heads} : TensorShape{batch, patches});
                break;
            case MergeInput::kQuery:
                good = ward ? fits(given, {batch, tokens, row}) : fits(given, {batch, row}) || fits(given, {batch, 1, row});
                break;
            case MergeInput::kMetric:
            case MergeInput::kKey:
            case MergeInput::kValue: good = fits(given, {batch, tokens, row}); break;
            case MergeInput::kSize: good = fits(given, {batch, tokens}); break;
            case MergeInput::kAskedBias: good = fits(given, {batch, tokens}) || fits(given, {batch, 1, 1, tokens}); break;
            case MergeInput::kGroup:
                good = fits(given, {batch, originals}) && (numbered || originals >= patches || given[1] == -1);
                break;
            default: good = fits(given, {batch, patches});
        }
        if (!good) return std::string(kind_of(config.inputs[i]).name) + " has another shape than x says";
    }
    return "";
}

// The same in a build, and for a call.
inline std::string largest_sizes(const MergeConfig& config, const nvinfer1::DynamicPluginTensorDesc* inputs, MergeShape& shape) {
    return merge_sizes(config, [inputs](int32_t i) { return inputs[i].max; }, [inputs](int32_t i) { return inputs[i].desc.dims; }, shape);
}

inline std::string present_sizes(const MergeConfig& config, const nvinfer1::PluginTensorDesc* inputs, MergeShape& shape) {
    const auto dims = [inputs](int32_t i) { return inputs[i].dims; };
    return merge_sizes(config, dims, dims, shape);
}

// K of a call where it is known before the run, else 0.
inline int64_t known_count(const MergeParameters& merge, int32_t patches) {
    if (!knows_count(merge)) return 0;
    if (merge.padded) return merge.most;
    return patches - std::min<int64_t>(merge.pair.pairs, members_of(first_of_a(merge.prefix), patches));
}

}  // namespace vitprune
