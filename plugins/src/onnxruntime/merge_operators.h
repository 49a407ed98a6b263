// SPDX-License-Identifier: Apache-2.0
//
// Merging sites as ONNX Runtime custom operators of the domain "vitprune": PairMerge, WardMerge and SampledMerge, on the CPU.
//
// Inputs: x float [B,prefix+P,C], then
//   WardMerge: gram float [B,P,P], products of the rows or of what stands for their channels; attention float [B,prefix+P,H], the
//              softmax over tokens that the CLS token gives, or [B,P], or absent where the importance has no power
//   PairMerge: products float [B,A,B'] of the metric's even and odd rows; metric float [B,prefix+P,d], of any length
// and, each where there is one, size float [B,prefix+P], patch int64 [B,P], valid bool [B,P], group int64 [B,P0]. In place of the
// attention WardMerge takes query and key float [B,prefix+P,heads*depth] and, where there is one, bias float [B,prefix+P] of the
// attention that has just been, and computes the CLS token's row itself.
// Outputs: rows float [B,prefix+K,C], size and bias float [B,prefix+K], index int64 [B,K], keep bool [B,K], and with group its successor
// int64 [B,P0]. bias: log(size) if asked for, and -1e4 on pads.
//
// SampledMerge is a site of ATS whose dropped patches join the kept ones most similar to them. Inputs: x and metric (keys without
// positions); query, key, value or score as PruneSite's; size float [B,N], patch, valid and group as above; bias float [B,N], added to the
// class token's logits. Outputs: those above, then patch and kept int64 [B,K], shape int64 [3] of the rows, and score float [B,P].
// Attributes: those of PruneSite and of the merging operators, floor.
//
// SketchProducts: x float [B,prefix+P,C], signs float [C] -> float [B,P,P], WardMerge's gram where it is of a sketch: channel c counts
// with its sign in sum c mod `sums`.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
