// SPDX-License-Identifier: Apache-2.0
//
// TokenHalt as an ONNX Runtime custom operator of the domain "vitprune", on the CPU: one step of A-ViT's halting behind a block, and the
// compaction before the next one.
//
// Inputs: x float [B,N,C]; behind the first block total float [B,N], remainder float [B,p] and output float [B,p,C]; patch int64 [B,P].
// Outputs, all but output optional: output; rows float [B,M,C], index int64 [B,K], keep bool [B,K], patch and kept int64 [B,K] and
// shape int64 [3] (of rows) where the node compacts; total float [B,M], remainder, mask int32 [B,M] (keys of the next block), and what the
// decisions were taken by, score float [B,N]. Attributes: those of TokenSample; channel, gate_scale, gate_center, limit, compacts, exits,
// last, prefix_tokens, originals. Its specification is vitprune.ops.token_halt.
#pragma once

#include "onnxruntime/api.h"

namespace vitprune {

void add_halt_operator(const OrtApi& api, OrtCustomOpDomain* domain);

}  // namespace vitprune
