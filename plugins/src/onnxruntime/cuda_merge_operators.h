// SPDX-License-Identifier: Apache-2.0
//
// PairMerge, WardMerge and SampledMerge as ONNX Runtime custom operators on the CUDA execution provider; inputs and outputs are those of
// merge_operators.h. Numbers in patch and group are not looked at by the host: those that are no patches belong to no slot.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

// provider: null for the CPU, where the tests have kernels that are emulated.
void add_cuda_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider = "CUDAExecutionProvider");

}  // namespace vitprune
