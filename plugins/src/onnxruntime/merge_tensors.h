// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs that merging operators share.
#pragma once

#include "host/merging.h"
#include "onnxruntime/cpu_operator.h"

namespace vitprune {

// Attributes of all merging operators.
struct MergeKernel {
    MergeKernel(const OrtApi& api_, const OrtKernelInfo* info)
        : api(api_), prefix(integer_of(api, info, "prefix")), most(integer_of(api, info, "most")),
          padded(integer_of(api, info, "padded") != 0), loses(integer_of(api, info, "loses") != 0),
          proportional(integer_of(api, info, "proportional") != 0) {
        insist(prefix >= 0 && most >= 0 && (!padded || most > 0));
    }

    void insist(bool sane) const {
        if (!sane) fail(api, ORT_INVALID_ARGUMENT, "an attribute is negative");
    }

    const OrtApi& api;
    int64_t prefix;
    int64_t most;       // largest number of slots that stay, 0: no bound
    bool padded;        // K = most
    bool loses;         // a bound may lose rows, and their patches have no row then
    bool proportional;
};

// The images of a batch, checked: x is input 0; size, patch, valid and group, which may be absent, are those from `first` on.
std::vector<MergeImage> images_of(const MergeKernel& kernel, OrtKernelContext* context, size_t first);

// Outputs of a merging operator: rows, size, bias, index, keep, and mask and group where somebody reads them; returns K.
constexpr ONNXTensorElementDataType kMergeOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool, kFloat, kInt64};

int64_t write_batch(const MergeKernel& kernel, OrtKernelContext* context, const std::vector<MergeImage>& images,
                    const std::vector<Merging>& merged, Mean mean);

}  // namespace vitprune
