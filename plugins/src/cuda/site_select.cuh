// SPDX-License-Identifier: Apache-2.0
//
// How a site scores and selects, for PruneSite and for the merging sites that sample: attention of the class token head by head, the
// score from it, and who stays by it. By blocks of kScoreThreads, or of any size where the score is given.
#pragma once

#include "cuda/score.cuh"
#include "cuda/site_workspace.cuh"
#include "cuda/typed.cuh"

namespace vitprune {

// Every warp of a block has rows of its own in one head: of(n, where row n begins, from row 0 on).
template <typename Of>
__device__ inline void warp_rows(const SiteShape& shape, const Of& of) {
    const int64_t stride = static_cast<int64_t>(shape.heads) * shape.head_width;
    for (int32_t n = threadIdx.x / kWarp; n < shape.tokens(); n += kScoreThreads / kWarp) of(n, n * stride);
}

// What the class token gives every token in head h, softmax over all keys, into attention [N]; the squared lengths of the rows in
// `value` into squares [N] where that is not null.
__device__ inline void head_attention(const SiteInputs& in, const SiteShape& shape, int32_t b, int32_t h, float* attention, float* squares,
                                      float* partial) {
    const int32_t tokens = shape.tokens();
    const int64_t asking = (static_cast<int64_t>(b) * in.query_rows * shape.heads + h) * shape.head_width;
    const int64_t first = (static_cast<int64_t>(b) * tokens * shape.heads + h) * shape.head_width;
    const uint8_t* valid = in.valid == nullptr ? nullptr : in.valid + static_cast<size_t>(b) * shape.patches;
    const float* bias = in.bias == nullptr ? nullptr : in.bias + static_cast<size_t>(b) * tokens;
    with_elements(in.query, asking, [&](const auto* query) {
        with_elements(in.key, first, [&](const auto* key) {
            warp_rows(shape, [&](int32_t n, int64_t row) {
                const int32_t patch = n - shape.prefix;
                const float logit = warp_dot(key + row, query, shape.head_width);
                if (threadIdx.x % kWarp != 0) return;
                const bool live = patch < 0 || valid == nullptr || valid[patch];
                const float moved = bias == nullptr ? logit : add(logit, bias[n]);
                attention[n] = live ? moved : -INFINITY;
            });
        });
    });
    if (squares != nullptr) {
        with_elements(in.value, first, [&](const auto* value) {
            warp_rows(shape, [&](int32_t n, int64_t row) {
                const float square = warp_dot(value + row, value + row, shape.head_width);
                if (threadIdx.x % kWarp == 0) squares[n] = square;
            });
        });
    }
    __syncthreads();
    softmax(attention, tokens, partial);
}

// __ldcg: the parts come from other blocks and must not be read from this one's L1 cache.
struct HeadPart {
    const float* of_patch;  // in head 0
    size_t stride;
    __device__ float operator()(int32_t h) const { return __ldcg(of_patch + h * stride); }
};

// Score of patch j from what all heads left in attention and squares [B,H,N].
__device__ inline float score_of_heads(SiteForm form, const SiteShape& shape, const float* attention, const float* squares, int32_t b,
                                       int32_t j) {
    const size_t stride = shape.tokens(), first = static_cast<size_t>(b) * shape.heads * stride + shape.prefix + j;
    return patch_score(form, shape.heads, HeadPart{attention + first, stride}, HeadPart{squares + first, stride});
}

// Who stays, and the memory of it.
struct Selecting {
    SiteParameters parameters;
    SiteInputs in;
    SiteShape shape;
    int32_t limit;
    void* workspace;

    __device__ const uint8_t* note_valid(int32_t b, const SiteWorkspace& layout) const {
        uint8_t* own = layout.valid + static_cast<size_t>(b) * shape.patches;
        for (int32_t j = threadIdx.x; j < shape.patches; j += blockDim.x) {
            own[j] = in.valid == nullptr || in.valid[static_cast<size_t>(b) * shape.patches + j] != 0;
        }
        return own;
    }

    // By the score of image b, which lies in the workspace.
    __device__ void select(int32_t b, const SiteWorkspace& layout, const uint8_t* valid, char* dynamic, BlockShared& shared) const {
        const size_t row = static_cast<size_t>(b) * shape.patches;
        const float theta = in.theta == nullptr ? 0.0f : *in.theta;
        for (int32_t j = threadIdx.x; j < shape.patches; j += blockDim.x) {
            layout.compared[row + j] = in.theta == nullptr ? layout.score[row + j] : add(layout.score[row + j], -theta);
        }
        __syncthreads();
        const SampleWorkspace sampling(layout.sample, shape.batch, shape.patches);
        const ImageScratch scratch = sampling.image(b, shape.patches, dynamic);
        const int32_t kept =
            select_image(parameters.sample, layout.compared + row, valid, shape.patches, limit, scratch, shared);
        if (threadIdx.x == 0) sampling.counts[b] = kept;
        int32_t found = 0;
        for (int32_t base = 0; base < shape.patches; base += blockDim.x) {
            const int32_t j = base + static_cast<int32_t>(threadIdx.x);
            const bool marked = j < shape.patches && scratch.mask[j];
            unsigned long long total;
            const int32_t slot = found + static_cast<int32_t>(block_inclusive_sum(marked, total, shared)) - 1;
            if (marked) layout.slots[row + slot] = j;
            found += static_cast<int32_t>(total);
        }
    }
};

}  // namespace vitprune
