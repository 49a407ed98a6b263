// SPDX-License-Identifier: Apache-2.0
//
// ColumnScore as an ONNX Runtime custom operator of the domain "vitprune", on the CPU: POMT's score of patches (host/column_score.h).
//
// Inputs: query (scaled), key and value float [B,prefix+P,heads*D]. Output: score float [B,P]. Attributes: heads, prefix_tokens.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_column_operator(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
