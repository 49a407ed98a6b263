// SPDX-License-Identifier: Apache-2.0
//
// The second launch of PruneSite gathers: many blocks per image, each with its share of the rows. Where K is not known before, it is the
// largest count that the first launch left in the workspace.
#include "block_launch.cuh"
#include "cuda/score.cuh"
#include "cuda/site_launch.h"
#include "cuda/site_workspace.cuh"
#include "cuda/typed.cuh"
#include "narrow.h"

namespace vitprune {
namespace {

constexpr int32_t kRowBlocks = 64;  // at most, per image

// Blocks of an image: row_blocks for rows, then one for everything that is no row, then those of the combined row,
// kScoreThreads channels each.
struct SiteGatherProgram {
    using Shared = BlockShared;
    static constexpr int kMaxThreads = kScoreThreads;
    SiteParameters parameters;
    SiteInputs in;
    SiteShape shape;
    SiteOutputs out;  // count <= 0: K is the largest count of the batch
    int32_t row_blocks;
    int32_t blocks;
    int64_t* count_out;
    float* score_out;
    void* workspace;

    __device__ void operator()(char*, Shared& shared) const {
        const int32_t b = static_cast<int32_t>(blockIdx.x) / blocks, part = static_cast<int32_t>(blockIdx.x) % blocks;
        const SiteWorkspace layout(workspace, shape);
        const SampleWorkspace sampling(layout.sample, shape.batch, shape.patches);
        int64_t count = out.count;
        if (count <= 0) {
            unsigned long long largest = 1;
            for (int32_t i = threadIdx.x; i < shape.batch; i += blockDim.x) {
                largest = max(largest, static_cast<unsigned long long>(sampling.counts[i]));
            }
            count = static_cast<int64_t>(block_reduce(largest, Maximum(), shared));
        }
        const int32_t real = sampling.counts[b];
        if (part < row_blocks) {
            rows(b, part, count, real, layout);
        } else if (part == row_blocks) {
            slots(b, count, real, layout);
        } else {
            combined(b, part - row_blocks - 1, count, layout, sampling.masks + static_cast<size_t>(b) * shape.patches, shared);
        }
    }

    __device__ int64_t more() const { return parameters.combine != Combine::kNothing; }

    __device__ void rows(int32_t b, int32_t part, int64_t count, int32_t real, const SiteWorkspace& layout) const {
        const int32_t* from = layout.slots + static_cast<size_t>(b) * shape.patches;
        const int64_t all = shape.prefix + count, tokens = shape.tokens();
        for (int64_t r = part; r < all; r += row_blocks) {
            const int64_t slot = r - shape.prefix;
            const int64_t source = slot < 0 ? r : shape.prefix + (slot < real ? from[slot] : 0);
            copy_elements(in.x, (b * tokens + source) * shape.width, out.rows, (b * (all + more()) + r) * shape.width, shape.width);
            if (out.rows2 == nullptr) continue;
            copy_elements(in.h, (b * tokens + source) * shape.width2, out.rows2, (b * all + r) * shape.width2, shape.width2);
        }
    }

    __device__ void slots(int32_t b, int64_t count, int32_t real, const SiteWorkspace& layout) const {
        const size_t row = static_cast<size_t>(b) * shape.patches;
        const int64_t all = shape.prefix + count + more();
        for (int64_t r = threadIdx.x; r < all; r += blockDim.x) {
            const int64_t slot = r - shape.prefix;
            const bool here = slot < 0 || slot >= count || slot < real;
            if (out.mask != nullptr) out.mask[b * all + r] = here;
            if (out.bias != nullptr) out.bias[b * all + r] = here ? 0.0f : kPadBias;
            if (slot < 0) continue;
            const int64_t j = slot < real && slot < count ? layout.slots[row + slot] : 0;
            const int64_t number = slot == count ? parameters.originals : in.patch == nullptr ? j : in.patch[row + j];
            if (out.patch != nullptr) out.patch[b * (count + more()) + slot] = number;
            if (slot == count) continue;
            if (out.index != nullptr) out.index[b * count + slot] = j;
            if (out.keep != nullptr) out.keep[b * count + slot] = here;
            if (out.kept != nullptr) out.kept[b * count + slot] = here && number < parameters.originals ? number : -1;
            if (out.score_kept != nullptr) out.score_kept[b * count + slot] = layout.score[row + j];
        }
        for (int32_t j = threadIdx.x; score_out != nullptr && j < shape.patches; j += blockDim.x) {
            score_out[row + j] = layout.score[row + j];
        }
        if (b == 0 && threadIdx.x == 0 && count_out != nullptr) *count_out = count;
    }

    // In the order of the host, one thread per channel.
    __device__ void combined(int32_t b, int32_t chunk, int64_t count, const SiteWorkspace& layout, const uint8_t* stays,
                             Shared& shared) const {
        const size_t row = static_cast<size_t>(b) * shape.patches;
        const uint8_t* valid = layout.valid + row;
        unsigned long long own = 0;
        for (int32_t j = threadIdx.x; j < shape.patches; j += blockDim.x) own += !stays[j] && valid[j];
        const unsigned long long leaving = block_reduce(own, Sum(), shared);
        const float share = divide(1.0f, static_cast<float>(leaving > 0 ? leaving : 1ull));
        const int64_t c = static_cast<int64_t>(chunk) * blockDim.x + threadIdx.x;
        if (c >= shape.width) return;
        const int64_t all = shape.prefix + count, to = (b * (all + 1) + all) * shape.width + c;
        with_elements(in.x, (b * static_cast<int64_t>(shape.tokens()) + shape.prefix) * shape.width, [&](const auto* patches) {
            float sum = 0.0f;
            for (int32_t j = 0; j < shape.patches; ++j) {
                if (stays[j] || !valid[j]) continue;
                const float weight = parameters.combine == Combine::kWeighted ? layout.score[row + j] : share;
                sum = add(sum, mul(weight, widen(patches[static_cast<int64_t>(j) * shape.width + c])));
            }
            store(sum, out.rows, to, patches);
        });
    }

    template <typename Element>
    __device__ static void store(float value, void* target, int64_t at, const Element*) {
        static_cast<Element*>(target)[at] = narrow<Element>(value);
    }
};

}  // namespace

cudaError_t write_site_on_device(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape,
                                 const SiteOutputs& out, int64_t* count_out, float* score_out, void* workspace, cudaStream_t stream) {
    const int32_t row_blocks = shape.tokens() < kRowBlocks ? shape.tokens() : kRowBlocks;
    const int32_t chunks = (shape.width + kScoreThreads - 1) / kScoreThreads;
    const int32_t blocks = row_blocks + 1 + (parameters.combine == Combine::kNothing ? 0 : chunks);
    const SiteGatherProgram program{parameters, in, shape, out, row_blocks, blocks, count_out, score_out, workspace};
    return launch_blocks(program, shape.batch * blocks, kScoreThreads, 0, stream);
}

}  // namespace vitprune
