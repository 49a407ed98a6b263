// SPDX-License-Identifier: Apache-2.0
//
// PackedAttention as an ONNX Runtime custom operator of the domain "vitprune", on the CPU.
//
// Inputs: query float [Tq,C], key and value float [Tk,C], query_ends and key_ends int64 [images+1], and, where there is one, bias
// float [Tk]. Attributes: num_heads, scale. Output: float [Tq,C]. Image b has the rows query_ends[b]..query_ends[b+1] of query and
// output and key_ends[b]..key_ends[b+1] of key and value; its specification is vitprune.ops.packed_attention.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_packed_operator(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
