// SPDX-License-Identifier: Apache-2.0
//
// Merging sites as ONNX Runtime custom operators of the domain "vitprune": WardMerge and PairMerge, on the CPU.
//
// Inputs: x float [B,prefix+P,C]; WardMerge: gram float [B,P,P], attention float [B,P]; PairMerge: similarity float [B,A,B'].
// Optional ones behind them: size float [B,prefix+P], patch int64 [B,P], valid bool [B,P], group int64 [B,P0].
// Outputs: rows float [B,prefix+K,C], size float [B,prefix+K], index int64 [B,K], keep bool [B,K], group int64 [B,P0] (optional).
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
