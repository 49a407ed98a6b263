// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs of a PruneSite node, checked; the same for the CPU and for CUDA.
#pragma once

#include <array>

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

// What a node writes: besides the outputs of a site where the score is to be told, and the shape of rows with where it is to be told;
// null where nobody asks.
struct SiteResults {
    SiteOutputs out{};
    float* score = nullptr;
    int64_t* shape = nullptr;
    std::array<int64_t, 3> dims{};
};

// Allocates it for K = count.
SiteResults site_results(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters, const SiteShape& shape,
                         int64_t count);

}  // namespace vitprune
