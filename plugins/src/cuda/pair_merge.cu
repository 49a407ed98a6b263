// SPDX-License-Identifier: Apache-2.0
//
// ToMe's matching in one launch of two stages: lengths of the metric's rows, a warp each; then the partner of every member of A, a warp
// each. The block that finishes an image last orders the members and says who leaves.
#include "block_launch.cuh"
#include "cuda/merge_finish.cuh"
#include "cuda/merge_kinds.h"
#include "cuda/score.cuh"

namespace vitprune {
namespace {

struct PairSite {
    using Shared = MergeShared;
    MergeParameters parameters;
    MergeInputs in;
    MergeShape shape;
    void* workspace;

    __device__ int32_t first_a() const { return first_of_a(shape.prefix); }
    __device__ int32_t first_b() const { return first_of_b(shape.prefix); }
    __device__ int32_t members_a() const { return members_of(first_a(), shape.patches); }

    __device__ void work(const StagePlace& place, Shared&) const {
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        const int32_t warps = blockDim.x / kWarp, first = place.part * warps + static_cast<int32_t>(threadIdx.x) / kWarp;
        const int32_t rows = place.stage == 0 ? shape.patches : members_a();
        for (int32_t row = first; row < rows; row += place.parts * warps) {
            if (place.stage == 0) {
                measure(view, row);
            } else {
                match(view, row);
            }
        }
    }

    __device__ void measure(const MergeView& view, int32_t slot) const {
        const float* row = in.metric + (static_cast<size_t>(view.b) * shape.tokens() + shape.prefix + slot) * shape.depth;
        const float square = warp_dot(row, row, shape.depth);
        if (threadIdx.x % kWarp == 0) view.layout.length[view.row() + slot] = larger(square_root(square), parameters.floor);
    }

    // Partner of member a of A, and how alike they are.
    __device__ void match(const MergeView& view, int32_t a) const {
        const int32_t count_a = members_a(), count_b = shape.patches - count_a, slot = first_a() + 2 * a;
        const float* product = in.products + (static_cast<size_t>(view.b) * count_a + a) * count_b;
        const float* length = view.layout.length + view.row();
        const auto alike = [&](int32_t b) {
            const int32_t other = first_b() + 2 * b;
            return likeness(product[b], length[slot], length[other], hidden(view.live(other)));
        };
        unsigned long long best = 0;
        for (int32_t b = threadIdx.x % kWarp; b < count_b; b += kWarp) best = max(best, first_largest(alike(b), b));
        best = warp_largest(best);
        if (threadIdx.x % kWarp != 0) return;
        const int32_t b = best == ~0ull ? 0 : preferred_index(best);
        view.layout.partner[view.row() + a] = b;
        view.layout.worth[view.row() + a] = ranked(add(alike(b), hidden(view.live(slot))));
    }

    __device__ bool close(const StagePlace& place, char* dynamic, Shared& shared) const {
        if (place.stage == 0) return false;
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        const size_t row = view.row();
        const int32_t count_a = members_a();
        const float* worth = layout.worth + row;
        uint8_t* leaves = layout.mask + row;
        const int64_t leaving = leavers(view, worth, shared.block);
        for (int32_t a = threadIdx.x; a < count_a; a += blockDim.x) leaves[a] = 1;
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) layout.into[row + slot] = slot;
        __syncthreads();
        keep_worthiest(worth, count_a, leaving, leaves, shared.block);
        for (int32_t a = threadIdx.x; a < count_a; a += blockDim.x) {
            if (leaves[a]) layout.into[row + first_a() + 2 * a] = first_b() + 2 * layout.partner[row + a];
        }
        __syncthreads();
        finish_merging(view, parameters.loses, note_slots(view, shared.block), dynamic);
        return true;
    }

    // How many of A leave: the most alike ones.
    __device__ int64_t leavers(const MergeView& view, const float* worth, BlockShared& shared) const {
        const int32_t count_a = members_a();
        int64_t leaving = min(parameters.pair.pairs, static_cast<int64_t>(count_a));
        if (!parameters.pair.by_threshold) return leaving;
        unsigned long long above = 0, live = 0;
        for (int32_t a = threadIdx.x; a < count_a; a += blockDim.x) above += worth[a] > parameters.pair.threshold;
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) live += view.live(slot);
        int64_t wanted = static_cast<int64_t>(block_reduce(above, Sum(), shared));
        const int64_t all = static_cast<int64_t>(block_reduce(live, Sum(), shared));
        if (parameters.most > 0) wanted = max(wanted, all - parameters.most);
        return min(leaving, wanted);
    }

    // Slots that stay: all in their order, or those of A and then B with its pads.
    __device__ int32_t note_slots(const MergeView& view, BlockShared& shared) const {
        const size_t row = view.row();
        const int32_t* into = view.layout.into + row;
        int32_t* slots = view.layout.slots + row;
        const auto stays = [&](int32_t slot) { return into[slot] == slot && view.live(slot); };
        if (parameters.pair.by_threshold) return collect(shape.patches, stays, [](int32_t slot) { return slot; }, slots, 0, shared);
        const int32_t a = first_a(), b = first_b(), count_a = members_a();
        const int32_t found = collect(
            count_a, [&](int32_t n) { return stays(a + 2 * n); }, [a](int32_t n) { return a + 2 * n; }, slots, 0, shared);
        return collect(
            shape.patches - count_a, [](int32_t) { return true; }, [b](int32_t n) { return b + 2 * n; }, slots, found, shared);
    }
};

}  // namespace

cudaError_t decide_pairs_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream) {
    const MergeWorkspace layout(workspace, parameters, shape);
    const Stages stages{shape.batch, stage_blocks(shape.batch, shape.patches), stage_blocks(shape.batch, shape.patches / 2), 2};
    return launch_stages(PairSite{parameters, in, shape, workspace}, stages, layout.counters, finish_bytes(shape), stream);
}

}  // namespace vitprune
