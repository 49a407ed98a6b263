// SPDX-License-Identifier: Apache-2.0
//
// PackedAttention as an ONNX Runtime custom operator of the domain "vitprune", on the CPU.
//
// Inputs: query float [Tq,C], key and value float [Tk,C], query_ends and key_ends int64 [images+1], and, where there is one, bias
// float [Tk]. Attributes: num_heads, scale. Output: float [Tq,C]. Image b has the rows query_ends[b]..query_ends[b+1] of query and
// output and key_ends[b]..key_ends[b+1] of key and value; its specification is vitprune.ops.packed_attention.
//
// KeyBiasAttention: attention of a batch in which keys have a value of their own. Inputs: query float [B,M,C], key and value float
// [B,N,C], and where there are, bias float [B,N], added to the logits of a key, and mask int32 [B,N], 0 on keys that are not there.
// Attributes as above. Output: float [B,M,C]; zeros where no key is there. Keys behind the last one that is there cost nothing; one
// with a bias of -5000 or less counts as not there.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_packed_operator(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
