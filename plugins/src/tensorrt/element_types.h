// SPDX-License-Identifier: Apache-2.0
//
// Element types of TensorRT as the C interface names them.
#pragma once

#include <NvInferRuntime.h>

#include "vitprune_plugin.h"

namespace vitprune {

inline bool is_element(nvinfer1::DataType type) {
    return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

// VpDtype of an element type.
inline int32_t element_dtype(nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kFLOAT) return VP_FLOAT32;
    return type == nvinfer1::DataType::kHALF ? VP_FLOAT16 : VP_BFLOAT16;
}

}  // namespace vitprune
