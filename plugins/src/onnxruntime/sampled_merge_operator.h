// SPDX-License-Identifier: Apache-2.0
//
// SampledMerge as an ONNX Runtime custom operator of the domain "vitprune", on the CPU: a site of ATS whose dropped patches join the kept
// ones most similar to them.
//
// Inputs: x and metric (keys without positions); query, key, value or score as PruneSite's; size float [B,N], patch, valid and group as
// the merging operators'; bias float [B,N], added to the class token's logits. Outputs: those of the merging operators, then patch and
// kept int64 [B,K], shape int64 [3] of the rows, and score float [B,P]. Attributes: those of PruneSite and of the merging operators, floor.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_sampled_merge(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
