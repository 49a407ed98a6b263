// SPDX-License-Identifier: Apache-2.0
//
// Host side of the packed attention kernel, for checked sizes. One launch; nothing here allocates or synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "vitprune_plugin.h"

namespace vitprune {

constexpr int kMaxPackedWidth = 128;  // of a head: two tiles and the queries fit into 48 KiB of shared memory

// Device memory; see vp_packed_attention_cuda.
struct PackedTensors {
    const void *query, *key, *value;
    const float* bias;
    const int64_t *query_ends, *key_ends;
    void* output;
};

struct PackedSizes {
    int32_t images, heads, width, longest;
    float scale;
};

cudaError_t attend_on_device(int32_t dtype, const PackedTensors& tensors, const PackedSizes& sizes, cudaStream_t stream);

}  // namespace vitprune
