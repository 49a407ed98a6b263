// SPDX-License-Identifier: Apache-2.0
//
// Sizes of one call of PruneSite, from the shapes of its inputs.
#pragma once

#include "tensorrt/site_fields.h"

namespace vitprune {

// dims(i) gives the shape of input i. Returns an empty string and the sizes, or which input does not fit; a dimension that is not known
// yet (-1) does not.
template <typename DimsOf>
std::string site_sizes(const SiteConfig& config, const DimsOf& dims, SiteShape& shape) {
    using Shape = std::vector<int64_t>;
    const auto of = [&](SiteInput role) {
        const int32_t position = position_of(config.inputs, role);
        if (position < 0) return Shape{};
        const nvinfer1::Dims& found = dims(position);
        return found.nbDims < 0 ? Shape{-1} : Shape(found.d, found.d + found.nbDims);
    };
    const Shape x = of(SiteInput::kX), h = of(SiteInput::kH), key = of(SiteInput::kKey);
    if (x.size() != 3) return "x must have the shape [batch, tokens, width]";
    const int64_t batch = x[0], patches = x[1] - config.site.prefix;
    const int64_t row = key.size() == 3 ? key[2] : 0, width2 = h.size() == 3 ? h[2] : 0;
    if (row % config.site.heads != 0) return "heads must divide the width of the keys";
    const int32_t status = check_site_shape(config.site, {batch, patches, x[2], width2, row / config.site.heads}, shape);
    if (status != VP_OK) return vp_status_string(status);
    for (const SiteInput role : config.inputs) {
        const Shape given = of(role);
        bool good = true;
        switch (role) {
            case SiteInput::kX: break;
            case SiteInput::kH: good = given == Shape{batch, x[1], width2} && width2 > 0; break;
            case SiteInput::kQuery: good = given == Shape{batch, row} || given == Shape{batch, 1, row}; break;
            case SiteInput::kKey:
            case SiteInput::kValue: good = given == Shape{batch, x[1], row}; break;
            case SiteInput::kTheta: good = given.empty(); break;
            default: good = given == Shape{batch, patches};
        }
        if (!good) return std::string(kind_of(role).name) + " has another shape than x says";
    }
    return "";
}

}  // namespace vitprune
