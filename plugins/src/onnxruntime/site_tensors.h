// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs of a PruneSite node, checked; the same for the CPU and for CUDA.
#pragma once

#include <array>

#include "onnxruntime/cpu_operator.h"
#include "site.h"

namespace vitprune {

// Types of inputs and outputs in the order of site_operator.h, where x (and rows) and h (and rows2) have these; those of query, key and
// value are seen when a node runs. An operator is registered for every pair: the runtime derives the types of outputs from it.
template <ONNXTensorElementDataType kX, ONNXTensorElementDataType kH>
struct SiteTypes {
    static constexpr ONNXTensorElementDataType kInputs[] = {kX, kBool, kAny, kAny, kAny, kFloat, kH, kInt64, kFloat};
    static constexpr ONNXTensorElementDataType kOutputs[] = {kX, kH, kInt64, kBool, kInt64, kInt64, kInt32, kFloat, kInt64, kFloat};
};

// Calls add(SiteTypes) for every pair that a graph can have: float32 beside at most one half type.
template <typename Add>
void for_site_types(const Add& add) {
    add(SiteTypes<kFloat, kFloat>());
    add(SiteTypes<kFloat, kHalf>());
    add(SiteTypes<kFloat, kBfloat16>());
    add(SiteTypes<kHalf, kFloat>());
    add(SiteTypes<kHalf, kHalf>());
    add(SiteTypes<kBfloat16, kFloat>());
    add(SiteTypes<kBfloat16, kBfloat16>());
}

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
