// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "host/merging.h"

namespace vitprune {

// ATS with merged drops (docs/methods/ats_merge.md): every patch that is not in `kept` (ascending slots) joins the kept one most
// similar to it, by the cosine of the heads' summed keys, ties to the lower slot; pads stay where they are.
//
// key: of the patches, [patches, heads * width]; no sum of keys counts as shorter than `floor`.
Merging sampled_merging(const MergeImage& image, const std::vector<int32_t>& kept, const float* key, int64_t heads, int64_t width,
                        float floor);

}  // namespace vitprune
