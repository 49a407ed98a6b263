// SPDX-License-Identifier: Apache-2.0
//
// ONNX Runtime's own threads for the pieces of one call (1.17 and newer); without them the pieces run one by one.
#pragma once

#include "host/parallel.h"
#include "onnxruntime/api.h"

namespace vitprune {

// Called at every registration of the operators.
void find_pool(const OrtApiBase* base);

ForEach pool_of(OrtKernelContext* context);

}  // namespace vitprune
