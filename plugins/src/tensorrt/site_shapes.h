// SPDX-License-Identifier: Apache-2.0
//
// Sizes of a call of PruneSite, from the shapes of its inputs.
#pragma once

#include "tensorrt/site_fields.h"

namespace vitprune {

using TensorShape = std::vector<int64_t>;

inline TensorShape shape_of(const nvinfer1::Dims& dims) {
    return dims.nbDims < 0 ? TensorShape{-1} : TensorShape(dims.d, dims.d + dims.nbDims);
}

// Whether a shape is the wanted one; -1 is a dimension that is not known yet.
inline bool fits(const TensorShape& given, const TensorShape& wanted) {
    if (given.size() != wanted.size()) return false;
    for (size_t i = 0; i < given.size(); ++i) {
        if (given[i] != -1 && given[i] != wanted[i]) return false;
    }
    return true;
}

// Returns an empty string and the sizes, or which input does not fit.
//   sizes(i)   shape of input i without unknown dimensions: the present one, or in a build the largest
//   stated(i)  the same, or in a build the one with -1 where a dimension is not constant. Bounds of different tensors need not agree:
//              where tokens follow the data, a builder derives the bound of each on its own.
template <typename Sizes, typename Stated>
std::string site_sizes(const SiteConfig& config, const Sizes& sizes, const Stated& stated, SiteShape& shape) {
    const auto of = [&](SiteInput role) {
        const int32_t position = position_of(config.inputs, role);
        return position < 0 ? TensorShape{} : shape_of(sizes(position));
    };
    const TensorShape x = of(SiteInput::kX), h = of(SiteInput::kH), key = of(SiteInput::kKey);
    if (x.size() != 3) return "x must have the shape [batch, tokens, width]";
    const int64_t batch = x[0], patches = x[1] - config.site.prefix;
    const int64_t row = key.size() == 3 ? key[2] : 0, width2 = h.size() == 3 ? h[2] : 0;
    if (row % config.site.heads != 0) return "heads must divide the width of the keys";
    const int32_t status = check_site_shape(config.site, {batch, patches, x[2], width2, row / config.site.heads}, shape);
    if (status != VP_OK) return vp_status_string(status);
    for (size_t i = 0; i < config.inputs.size(); ++i) {
        const TensorShape given = shape_of(stated(static_cast<int32_t>(i)));
        bool good = true;
        switch (config.inputs[i]) {
            case SiteInput::kX: break;
            case SiteInput::kH: good = width2 > 0 && fits(given, {batch, x[1], width2}); break;
            case SiteInput::kQuery: good = fits(given, {batch, row}) || fits(given, {batch, 1, row}); break;
            case SiteInput::kKey:
            case SiteInput::kValue: good = fits(given, {batch, x[1], row}); break;
            case SiteInput::kTheta: good = given.empty(); break;
            default: good = fits(given, {batch, patches});
        }
        if (!good) return std::string(kind_of(config.inputs[i]).name) + " has another shape than x says";
    }
    return "";
}

// The same in a build, and for a call.
inline std::string largest_sizes(const SiteConfig& config, const nvinfer1::DynamicPluginTensorDesc* inputs, SiteShape& shape) {
    return site_sizes(config, [inputs](int32_t i) { return inputs[i].max; }, [inputs](int32_t i) { return inputs[i].desc.dims; }, shape);
}

inline std::string present_sizes(const SiteConfig& config, const nvinfer1::PluginTensorDesc* inputs, SiteShape& shape) {
    const auto dims = [inputs](int32_t i) { return inputs[i].dims; };
    return site_sizes(config, dims, dims, shape);
}

}  // namespace vitprune
