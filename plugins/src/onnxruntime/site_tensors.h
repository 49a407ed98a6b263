// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs of a PruneSite node, checked; the same for the CPU and for CUDA.
#pragma once

#include "onnxruntime/cpu_operator.h"
#include "site.h"

namespace vitprune {

// In the order of site_operator.h.
constexpr ONNXTensorElementDataType kSiteInputs[] = {kFloat, kBool, kFloat, kFloat, kFloat, kFloat, kFloat, kInt64, kFloat};
constexpr ONNXTensorElementDataType kSiteOutputs[] = {kFloat, kFloat, kInt64, kBool, kInt64, kInt64, kInt32, kFloat, kInt64, kFloat};

SiteParameters read_site(const OrtApi& api, const OrtKernelInfo* info);

struct SiteTensors {
    SiteTensors(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters);

    SiteInputs in{};
    SiteShape shape{};
};

// Allocates what the node has, for K = count; `score` is where the score is to be told, null where nobody asks.
SiteOutputs site_outputs(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters, const SiteShape& shape,
                         int64_t count, float*& score);

}  // namespace vitprune
