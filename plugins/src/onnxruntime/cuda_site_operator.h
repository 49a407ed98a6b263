// SPDX-License-Identifier: Apache-2.0
//
// PruneSite as an ONNX Runtime custom operator on the CUDA execution provider; inputs and outputs are those of site_operator.h.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

// provider: null for the CPU, where the tests have kernels that are emulated.
void add_cuda_site_operator(const OrtApi& api, OrtCustomOpDomain* domain, const char* provider = "CUDAExecutionProvider");

}  // namespace vitprune
