// SPDX-License-Identifier: Apache-2.0
//
// TokenSample and TokenScoreSample as ONNX Runtime custom operators of the domain "vitprune". Inputs and outputs are those
// of the TensorRT plugin (src/tensorrt/plugin.h).
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

struct OperatorKernel {
    const OrtApi& api;
    SampleParameters sample;
    ScoreParameters score;
};

using ComputeFunction = void (*)(const OperatorKernel& kernel, OrtKernelContext* context);

// One row of the operator table that ONNX Runtime calls back through.
struct Operator : OrtCustomOp {
    Operator(const char* name, const char* provider, bool fused, ComputeFunction compute);

    const char* name;
    const char* provider;  // null: the CPU
    bool fused;
    ComputeFunction compute;
};

// Checks score float [B,P] and valid bool [B,P] of a TokenSample node and returns {B, P}.
struct SampleInputs {
    const float* score;
    const uint8_t* valid;
    int32_t batch;
    int32_t patches;
};
SampleInputs sample_inputs(const OrtApi& api, OrtKernelContext* context);

// TokenSample on the CUDA execution provider; defined where the CUDA part is built.
void compute_sample_cuda(const OperatorKernel& kernel, OrtKernelContext* context);

}  // namespace vitprune
