// SPDX-License-Identifier: Apache-2.0
//
// TokenPredictor as an ONNX Runtime custom operator of the domain "vitprune", on the CPU: DynamicViT's predictor (arXiv 2106.02034,
// section 3.2), whose linear maps, norm and GELU are ONNX Runtime's own kernels.
//
// Inputs: x float [B,prefix+P,C]; weights of the norm [C], [C]; of what describes a token and what describes the image [C,E] and
// [E] each; of the map behind them, for both halves [E,E], [E,E], [E]; [E,F], [F]; and, logit of keeping minus that of dropping,
// [F,1], [1]. Output: score float [B,P]. Attributes: prefix_tokens, epsilon (of the norm).
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_predictor_operator(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
