// SPDX-License-Identifier: Apache-2.0
//
// Attention of images that lie behind each other, on CUDA cores. A block has one head of one image and a tile of its queries; keys
// and values pass through shared memory in tiles of a warp, and the softmax is kept up as they come (Milakov and Gimelshein 2018).
// How many queries an image has is read on the device alone: blocks beyond the last tile leave at once.
#include <cmath>
#include <limits>

#include "block_launch.cuh"
#include "cuda/block.cuh"
#include "cuda/packed_attention.h"
#include "host/packed_attention.h"
#include "narrow.h"

#if defined(__CUDACC__)
#define VP_UNROLL _Pragma("unroll")
#else
#define VP_UNROLL
#endif

namespace vitprune {
namespace {

constexpr int kPackedThreads = 128;
constexpr int kWarps = kPackedThreads / kWarp;
constexpr int kWarpRows = 4;                      // queries of a warp
constexpr int kTileRows = kWarps * kWarpRows;     // queries of a block
constexpr int kChannels = kMaxPackedWidth / kWarp;  // channels of a lane

__device__ float warp_max(float value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
    return value;
}

__device__ float warp_sum(float value) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
    return value;
}

struct PackedShared {
    float weights[kTileRows][kWarp];
};

// Softmax and context of one query so far.
struct Row {
    float top, sum;
    float context[kChannels];
};

template <typename Element>
struct PackedProgram {
    using Shared = PackedShared;
    static constexpr int kMaxThreads = kPackedThreads;
    PackedTensors tensors;
    PackedSizes sizes;
    int32_t tiles;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        const int32_t tile = static_cast<int32_t>(blockIdx.x) % tiles, unit = static_cast<int32_t>(blockIdx.x) / tiles;
        const int32_t head = unit % sizes.heads, image = unit / sizes.heads;
        const int64_t first = tensors.query_ends[image] + tile * kTileRows;
        const int64_t left = tensors.query_ends[image + 1] - first;
        if (left <= 0) return;  // the same in all threads
        const int32_t queries = static_cast<int32_t>(left < kTileRows ? left : kTileRows), width = sizes.width;
        const int64_t first_key = tensors.key_ends[image];
        const int32_t keys = static_cast<int32_t>(tensors.key_ends[image + 1] - first_key);
        const int64_t stride = static_cast<int64_t>(sizes.heads) * width, at = static_cast<int64_t>(head) * width;
        const Element* query = static_cast<const Element*>(tensors.query) + first * stride + at;
        const Element* key = static_cast<const Element*>(tensors.key) + first_key * stride + at;
        const Element* value = static_cast<const Element*>(tensors.value) + first_key * stride + at;
        const float* bias = tensors.bias == nullptr ? nullptr : tensors.bias + first_key;
        Element* output = static_cast<Element*>(tensors.output) + first * stride + at;

        float* rows = reinterpret_cast<float*>(dynamic);          // [kTileRows, width]
        float* key_tile = rows + kTileRows * width;               // [kWarp, width + 1]: a column meets all banks
        float* value_tile = key_tile + kWarp * (width + 1);       // [kWarp, width]
        load(query, queries, stride, rows, width);
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        Row state[kWarpRows];
        for (Row& row : state) {
            row.top = -INFINITY;
            row.sum = 0.0f;
            for (float& channel : row.context) channel = 0.0f;
        }
        for (int32_t n = 0; n < keys; n += kWarp) {
            const int32_t here = keys - n < kWarp ? keys - n : kWarp;
            __syncthreads();  // everybody is done with the tile before, and the queries are there
            load(key + n * stride, here, stride, key_tile, width + 1);
            load(value + n * stride, here, stride, value_tile, width);
            __syncthreads();
            const float offset = lane < here && bias != nullptr ? bias[n + lane] : 0.0f;
            VP_UNROLL
            for (int r = 0; r < kWarpRows; ++r) {
                const int32_t row = warp * kWarpRows + r;
                if (row >= queries) break;  // the same in all lanes
                meet(rows + row * width, key_tile, value_tile, here, offset, shared.weights[row], state[r]);
            }
        }
        VP_UNROLL
        for (int r = 0; r < kWarpRows; ++r) {
            const int32_t row = warp * kWarpRows + r;
            if (row >= queries) break;
            const float factor = state[r].sum > 0.0f ? 1.0f / state[r].sum : 0.0f;  // nothing to attend to gives zeros
            VP_UNROLL
            for (int k = 0; k < kChannels; ++k) {
                const int c = lane + k * kWarp;
                if (c < width) output[row * stride + c] = narrow<Element>(factor * state[r].context[k]);
            }
        }
    }

    // Rows [count, width] of a tensor into shared memory.
    __device__ void load(const Element* from, int32_t count, int64_t stride, float* to, int32_t to_stride) const {
        for (int32_t n = threadIdx.x; n < count * sizes.width; n += kPackedThreads) {
            const int32_t row = n / sizes.width, c = n % sizes.width;
            to[row * to_stride + c] = widen(from[row * stride + c]);
        }
    }

    // One query and a tile of `here` keys, one per lane.
    __device__ void meet(const float* query, const float* key_tile, const float* value_tile, int32_t here, float offset, float* weights,
                         Row& row) const {
        const int lane = threadIdx.x % kWarp;
        const int32_t width = sizes.width;
        float logit = -INFINITY;
        if (lane < here) {
            float product = 0.0f;
            for (int32_t c = 0; c < width; ++c) product = fmaf(query[c], key_tile[lane * (width + 1) + c], product);
            logit = fmaf(sizes.scale, product, offset);
        }
        const float top = fmaxf(row.top, warp_max(logit));
        const float base = top == -INFINITY ? 0.0f : top;  // as long as every key is hidden by a bias of -inf, nothing counts
        const float weight = lane < here ? expf(logit - base) : 0.0f;
        const float fade = expf(row.top - base);  // 0 for the first tile
        row.top = top;
        row.sum = fmaf(row.sum, fade, warp_sum(weight));
        weights[lane] = weight;
        __syncwarp();
        VP_UNROLL
        for (int k = 0; k < kChannels; ++k) {
            const int c = lane + k * kWarp;
            if (c >= width) break;
            float sum = row.context[k] * fade;
            for (int32_t j = 0; j < here; ++j) sum = fmaf(weights[j], value_tile[j * width + c], sum);
            row.context[k] = sum;
        }
        __syncwarp();  // before the next row writes weights of its own
    }
};

template <typename Element>
cudaError_t launch_packed(const PackedTensors& tensors, const PackedSizes& sizes, cudaStream_t stream) {
    const int32_t tiles = static_cast<int32_t>((sizes.longest + kTileRows - 1) / kTileRows);
    const size_t floats = kTileRows * sizes.width + kWarp * (sizes.width + 1) + kWarp * sizes.width;
    const PackedProgram<Element> program{tensors, sizes, tiles};
    return launch_blocks(program, sizes.images * sizes.heads * tiles, kPackedThreads, floats * sizeof(float), stream);
}

}  // namespace

cudaError_t attend_on_device(int32_t dtype, const PackedTensors& tensors, const PackedSizes& sizes, cudaStream_t stream) {
    if (dtype == VP_FLOAT16) return launch_packed<Half>(tensors, sizes, stream);
    if (dtype == VP_BFLOAT16) return launch_packed<Bfloat16>(tensors, sizes, stream);
    return launch_packed<float>(tensors, sizes, stream);
}

}  // namespace vitprune

int32_t vp_packed_attention_cuda(int32_t dtype, const void* query, const void* key, const void* value, const float* bias,
                                 const int64_t* query_ends, const int64_t* key_ends, int64_t images, int64_t heads, int64_t width,
                                 int64_t longest, float scale, void* output, void* stream) {
    using namespace vitprune;
    if (dtype < VP_FLOAT32 || dtype > VP_BFLOAT16) return VP_UNKNOWN_DTYPE;
    const int32_t status = check_packed(images, heads, width, scale);
    if (status != VP_OK) return status;
    if (width > kMaxPackedWidth) return VP_BAD_HEADS;
    if (longest < 1 || longest > VP_MAX_PATCHES * 2) return VP_BAD_PATCHES;
    const int64_t blocks = images * heads * ((longest + kTileRows - 1) / kTileRows);
    if (blocks > std::numeric_limits<int32_t>::max()) return VP_BAD_BATCH;  // a launch counts its blocks in 32 bits
    if (!(query && key && value && query_ends && key_ends && output)) return VP_NULL_POINTER;
    const PackedSizes sizes{static_cast<int32_t>(images), static_cast<int32_t>(heads), static_cast<int32_t>(width),
                            static_cast<int32_t>(longest), scale};
    const cudaError_t error = attend_on_device(dtype, {query, key, value, bias, query_ends, key_ends, output}, sizes,
                                               static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? VP_OK : VP_CUDA_ERROR;
}
