// SPDX-License-Identifier: Apache-2.0
//
// ATS with merged drops in one launch of two stages. The first: the class token's attention head by head, and the metric's rows summed
// over the heads and brought to unit length, a warp each; the block that finishes an image last scores and samples. The second: what
// leaves looks for what stays that is most similar to it, a few rows per warp, one kept slot per lane.
#include "block_launch.cuh"
#include "cuda/merge_finish.cuh"
#include "cuda/merge_kinds.h"
#include "cuda/site_select.cuh"

namespace vitprune {
namespace {

constexpr int32_t kRows = 4;  // that a warp compares at once, so that what a lane has loaded is used as often

struct SampledSite {
    using Shared = MergeShared;
    MergeParameters parameters;
    MergeInputs in;
    MergeShape shape;
    SiteInputs scoring;
    int32_t limit;  // of slots that stay
    void* workspace;

    __device__ SiteShape site() const { return {shape.batch, shape.patches, shape.prefix, shape.width, 0, shape.heads, shape.depth}; }

    __device__ void work(const StagePlace& place, Shared& shared) const {
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        const int32_t warps = blockDim.x / kWarp, first = place.part * warps + static_cast<int32_t>(threadIdx.x) / kWarp;
        if (place.stage == 0) {
            if (parameters.site.form != SiteForm::kGiven) ask(view, place, shared.partial);
            for (int32_t slot = first; slot < shape.patches; slot += place.parts * warps) normalise(view, slot);
        } else {
            const int32_t leavers = layout.leavers[view.b];
            for (int32_t n = first * kRows; n < leavers; n += place.parts * warps * kRows) match(view, n, leavers);
        }
    }

    __device__ void ask(const MergeView& view, const StagePlace& place, float* partial) const {
        const SiteWorkspace layout(view.layout.sampling, site());
        const bool values = reads_value(parameters.site.form);
        for (int32_t h = place.part; h < shape.heads; h += place.parts) {
            const size_t own = (static_cast<size_t>(view.b) * shape.heads + h) * shape.tokens();
            head_attention(scoring, site(), view.b, h, layout.attention + own, values ? layout.squares + own : nullptr, partial);
            __syncthreads();
        }
    }

    // Channel c of a slot's metric, summed over the heads.
    __device__ float channel(const float* row, int32_t c) const {
        float sum = row[c];
        for (int32_t h = 1; h < shape.heads; ++h) sum = add(sum, row[h * shape.depth + c]);
        return sum;
    }

    __device__ void normalise(const MergeView& view, int32_t slot) const {
        const size_t token = static_cast<size_t>(view.b) * shape.tokens() + shape.prefix + slot;
        const float* row = in.metric + token * shape.heads * shape.depth;
        const int32_t lane = threadIdx.x % kWarp;
        float strand = 0.0f;
        for (int32_t c = lane; c < shape.depth; c += kWarp) {
            const float sum = channel(row, c);
            strand = fused(sum, sum, strand);
        }
        // In a butterfly every lane adds what the first one does in a sum by halving: all get its bits.
        for (int offset = kWarp / 2; offset > 0; offset /= 2) strand = add(strand, __shfl_xor_sync(kFullWarp, strand, offset));
        const float length = larger(square_root(strand), parameters.floor);
        float* unit = view.layout.unit + view.row() * shape.depth + slot;
        for (int32_t c = lane; c < shape.depth; c += kWarp) {
            unit[static_cast<size_t>(c) * shape.patches] = divide(channel(row, c), length);
        }
    }

    // Where leavers n, n + 1, ... join: the kept slot of the largest cosine, ties to the lower one. A cosine is one chain of fused products.
    __device__ void match(const MergeView& view, int32_t n, int32_t leavers) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row(), patches = shape.patches;
        const float* unit = layout.unit + row * shape.depth;
        const int32_t count = layout.counts[view.b], lane = threadIdx.x % kWarp;
        const float* own[kRows];
        unsigned long long best[kRows] = {};
        for (int32_t r = 0; r < kRows; ++r) own[r] = unit + layout.leaving[row + (n + r < leavers ? n + r : n)];
        for (int32_t k = lane; k < count; k += kWarp) {
            const float* across = unit + layout.slots[row + k];
            float cosine[kRows] = {};
            for (int32_t c = 0; c < shape.depth; ++c) {
                const float here = across[c * patches];
                for (int32_t r = 0; r < kRows; ++r) cosine[r] = fused(own[r][c * patches], here, cosine[r]);
            }
            for (int32_t r = 0; r < kRows; ++r) best[r] = max(best[r], first_largest(cosine[r], k));
        }
        for (int32_t r = 0; r < kRows; ++r) {
            const unsigned long long key = warp_largest(best[r]);
            if (lane != 0 || n + r >= leavers) continue;
            layout.into[row + layout.leaving[row + n + r]] = layout.slots[row + (key == ~0ull ? 0 : preferred_index(key))];
        }
    }

    __device__ bool close(const StagePlace& place, char* dynamic, Shared& shared) const {
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        const bool last = place.stage == 1 || !sample(view, dynamic, shared.block);
        if (last) finish_merging(view, parameters.loses, layout.counts[view.b], dynamic);
        return last;
    }

    // Scores and samples; true where somebody leaves and somebody stays.
    __device__ bool sample(const MergeView& view, char* dynamic, BlockShared& shared) const {
        const MergeWorkspace& layout = view.layout;
        const SiteWorkspace sampling(layout.sampling, site());
        const size_t row = view.row();
        const Selecting selecting{parameters.site, scoring, site(), limit, layout.sampling};
        const uint8_t* valid = selecting.note_valid(view.b, sampling);
        __syncthreads();
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) {
            const bool given = parameters.site.form == SiteForm::kGiven;
            const float all =
                given ? 0.0f : score_of_heads(parameters.site.form, site(), sampling.attention, sampling.squares, view.b, slot);
            sampling.score[row + slot] = given ? in.score[row + slot] : valid[slot] ? all : 0.0f;
            layout.into[row + slot] = slot;
        }
        __syncthreads();
        selecting.select(view.b, sampling, valid, dynamic, shared);
        __syncthreads();
        const SampleWorkspace chosen(sampling.sample, shape.batch, shape.patches);
        const uint8_t* stays = chosen.masks + row;
        const int32_t count = chosen.counts[view.b];
        for (int32_t k = threadIdx.x; k < count; k += blockDim.x) layout.slots[row + k] = sampling.slots[row + k];
        const int32_t leavers = collect(
            shape.patches, [&](int32_t slot) { return !stays[slot] && valid[slot]; }, [](int32_t slot) { return slot; }, layout.leaving + row,
            0, shared);
        if (threadIdx.x == 0) {
            layout.counts[view.b] = count;
            layout.leavers[view.b] = leavers;
        }
        __syncthreads();
        return leavers > 0 && count > 0;
    }
};

}  // namespace

cudaError_t decide_sampled_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                     cudaStream_t stream) {
    const MergeWorkspace layout(workspace, parameters, shape);
    const SampledSite site{parameters, in, shape, scoring_inputs(in, shape, parameters.kind),
                           row_limit(parameters.site.sample, shape.patches), workspace};
    const int32_t blocks = stage_blocks(shape.batch, shape.patches);
    return launch_stages(site, {shape.batch, blocks, stage_blocks(shape.batch, (shape.patches + kRows - 1) / kRows), 2}, layout.counters,
                         finish_bytes(shape), stream);
}

}  // namespace vitprune
