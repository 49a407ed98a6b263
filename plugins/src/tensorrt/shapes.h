// SPDX-License-Identifier: Apache-2.0
//
// Formulas of dimensions, and what all plugins say of errors.
#pragma once

#include <NvInferRuntime.h>

#include <initializer_list>
#include <string>

#include "parameters.h"
#include "tensorrt/log.h"

namespace vitprune {

inline const nvinfer1::IDimensionExpr* smaller(nvinfer1::IExprBuilder& builder, const nvinfer1::IDimensionExpr* a, int64_t b) {
    return builder.operation(nvinfer1::DimensionOperation::kMIN, *a, *builder.constant(b));
}

inline const nvinfer1::IDimensionExpr* plus(nvinfer1::IExprBuilder& builder, const nvinfer1::IDimensionExpr* a, int64_t b) {
    return b == 0 ? a : builder.operation(nvinfer1::DimensionOperation::kSUM, *a, *builder.constant(b));
}

inline const nvinfer1::IDimensionExpr* minus(nvinfer1::IExprBuilder& builder, const nvinfer1::IDimensionExpr* a, int64_t b) {
    return b == 0 ? a : builder.operation(nvinfer1::DimensionOperation::kSUB, *a, *builder.constant(b));
}

inline nvinfer1::DimsExprs dims_of(std::initializer_list<const nvinfer1::IDimensionExpr*> list) {
    nvinfer1::DimsExprs dims{};
    for (const nvinfer1::IDimensionExpr* one : list) dims.d[dims.nbDims++] = one;
    return dims;
}

// K. A formula when rows are padded; else a size tensor, which is the output `count_output`. Its upper bound sizes buffers and its
// typical value steers the choice of kernels behind the plugin.
inline const nvinfer1::IDimensionExpr* kept_slots(nvinfer1::IExprBuilder& builder, const SampleParameters& sample,
                                                  const nvinfer1::IDimensionExpr* patches, int32_t count_output) {
    const nvinfer1::IDimensionExpr* slots = sample.capacity > 0 ? smaller(builder, patches, sample.capacity) : patches;
    if (sample.padded) return slots;
    const nvinfer1::IDimensionExpr* upper = sample.mode == Mode::kThreshold ? slots : smaller(builder, slots, sample.samples);
    const nvinfer1::IDimensionExpr* typical = sample.expected > 0 ? smaller(builder, upper, sample.expected) : upper;
    return builder.declareSizeTensor(count_output, *typical, *upper);
}

inline int32_t refuse(const std::string& message) {
    log_error(message);
    return -1;
}

}  // namespace vitprune
