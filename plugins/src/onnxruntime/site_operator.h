// SPDX-License-Identifier: Apache-2.0
//
// PruneSite as an ONNX Runtime custom operator of the domain "vitprune", on the CPU.
//
// Inputs: x, valid, query, key, value, score, h, patch, theta; outputs: rows, rows2, index, keep, patch, kept, mask, score_kept,
// shape, score. Types and shapes are those of VpPruneSiteTensors; shape int64 [3] is that of rows. All but x and rows may be absent.
// Beside float32 a node may have one half type: x (and rows), h (and rows2), and query, key and value each are of either.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_site_operators(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
