// SPDX-License-Identifier: Apache-2.0
//
// Ward merging in one launch of 2 * rounds stages. The first: the class token's attention head by head, and the lengths of all rows. Then
// every round has one in which each slot looks for its nearest one, a warp per slot, whose last block says who joins whom, and one that
// moves the products to the centroids, a warp per row. A round in which nobody joins is an image's last one.
//
// A row of products that has joined another one is not looked at any more, so nobody moves it, and the row it joins can read it.
#include "block_launch.cuh"
#include "cuda/merge_finish.cuh"
#include "cuda/merge_kinds.h"
#include "cuda/site_select.cuh"

namespace vitprune {
namespace {

struct WardSite {
    using Shared = MergeShared;
    MergeParameters parameters;
    MergeInputs in;
    MergeShape shape;
    void* workspace;

    __device__ SiteShape site() const { return {shape.batch, shape.patches, shape.prefix, shape.width, 0, shape.heads, shape.depth}; }

    __device__ bool asks() const { return in.query != nullptr && parameters.ward.power != 0.0f; }

    __device__ void work(const StagePlace& place, Shared& shared) const {
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        if (place.stage == 0 && asks()) ask(view, place, shared.partial);
        const int32_t warps = blockDim.x / kWarp, first = place.part * warps + static_cast<int32_t>(threadIdx.x) / kWarp;
        for (int32_t slot = first; slot < shape.patches; slot += place.parts * warps) {
            if (place.stage == 0) {
                measure(view, slot);
            } else if (place.stage % 2 == 1) {
                find_nearest(view, slot, place.stage == 1);
            } else {
                move_row(view, slot);
            }
        }
    }

    __device__ void ask(const MergeView& view, const StagePlace& place, float* partial) const {
        SiteInputs asking{};
        asking.query = in.query;
        asking.key = in.key;
        asking.bias = in.bias;
        asking.query_rows = shape.tokens();
        for (int32_t h = place.part; h < shape.heads; h += place.parts) {
            float* row = view.layout.attention + (static_cast<size_t>(view.b) * shape.heads + h) * shape.tokens();
            head_attention(asking, site(), view.b, h, row, nullptr, partial);
            __syncthreads();
        }
    }

    __device__ void measure(const MergeView& view, int32_t slot) const {
        const float square = warp_dot(view.x(slot), view.x(slot), shape.width);
        if (threadIdx.x % kWarp != 0) return;
        const float norm = square_root(square);
        view.layout.norm[view.row() + slot] = norm;
        view.layout.factor[view.row() + slot] = divide(1.0f, larger(norm, kShortest));
    }

    __device__ size_t products_of(const MergeView& view, int32_t slot) const { return (view.row() + slot) * shape.patches; }

    __device__ static float of_directions(float product, float own, float other) { return mul(mul(product, own), other); }

    // Cheapest partner of a slot, ties to the lower one; what is told is the damage with a minus.
    __device__ void find_nearest(const MergeView& view, int32_t slot, bool first_round) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row();
        const float* factor = layout.factor + row;
        const float* source = first_round ? in.gram + products_of(view, slot) : layout.products + products_of(view, slot);
        float* target = parameters.ward.rounds > 1 ? layout.products + products_of(view, slot) : nullptr;
        const bool gone = layout.length[row + slot] == kNoDamage;  // as its own length tells, below
        const float own = layout.length[row + slot], inverse = layout.inverse[row + slot];
        unsigned long long best = 0;
        for (int32_t j = threadIdx.x % kWarp; j < shape.patches; j += kWarp) {
            float product = source[j];
            if (first_round) {
                product = of_directions(product, factor[slot], factor[j]);
                if (target != nullptr) target[j] = product;
            }
            if (gone || j == slot) continue;
            const float damage = ward_damage(product, own, layout.length[row + j], inverse, layout.inverse[row + j]);
            best = max(best, static_cast<unsigned long long>(preference(-damage, j)));
        }
        best = warp_largest(best);
        if (threadIdx.x % kWarp != 0) return;
        const bool found = best > preference(-kNoDamage, 0);
        layout.partner[row + slot] = found ? preferred_index(best) : -1;
        layout.worth[row + slot] = found ? preferred_score(best) : -kNoDamage;
    }

    // Products of the centroids: rows first, then columns.
    __device__ void move_row(const MergeView& view, int32_t slot) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row();
        if (layout.length[row + slot] == kNoDamage) return;
        float* own = layout.products + products_of(view, slot);
        const int32_t other = layout.source[row + slot], lane = threadIdx.x % kWarp;
        if (other >= 0) {
            const float* products = layout.products + products_of(view, other);
            for (int32_t j = lane; j < shape.patches; j += kWarp) own[j] = moved(own[j], products[j], layout.share[row + other]);
        }
        __syncwarp();
        for (int32_t n = lane; n < layout.joins[view.b]; n += kWarp) {
            const int32_t joins = layout.joined[row + n], into = layout.partner[row + joins];
            own[into] = moved(own[into], own[joins], layout.share[row + joins]);
        }
        __syncwarp();
        if (lane == 0) layout.length[row + slot] = own[slot];
    }

    __device__ bool close(const StagePlace& place, char* dynamic, Shared& shared) const {
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, place.image};
        const int64_t round = (place.stage - 1) / 2;
        bool last = parameters.ward.rounds == 0;
        if (place.stage == 0) {
            weigh(view);
        } else if (place.stage % 2 == 1) {
            last = !join(view, shared.block) || round + 1 == parameters.ward.rounds;
        } else {
            return false;
        }
        if (last) finish(view, dynamic, shared.block);
        return last;
    }

    // Masses, and who is there.
    __device__ void weigh(const MergeView& view) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row();
        if (threadIdx.x == 0) layout.left[view.b] = parameters.ward.pairs;
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) {
            const float size = view.size(slot);
            const float mass = parameters.ward.power == 0.0f ? size : ward_mass(parameters.ward, size, received(view, slot));
            const float product = in.gram[products_of(view, slot) + slot], factor = layout.factor[row + slot];
            layout.weight[row + slot] = layout.mass[row + slot] = mass;
            layout.inverse[row + slot] = divide(1.0f, mass);
            layout.length[row + slot] = view.live(slot) ? of_directions(product, factor, factor) : kNoDamage;
            layout.into[row + slot] = slot;
        }
        __syncthreads();
    }

    __device__ float received(const MergeView& view, int32_t slot) const {
        if (asks()) return add(0.0f, score_of_heads(SiteForm::kSum, site(), view.layout.attention, view.layout.attention, view.b, slot));
        if (shape.heads == 0) return add(0.0f, in.attention[view.row() + slot]);
        const float* own = in.attention + (static_cast<size_t>(view.b) * shape.tokens() + shape.prefix + slot) * shape.heads;
        float all = 0.0f;
        for (int32_t h = 0; h < shape.heads; ++h) all = add(all, own[h]);
        return all;
    }

    // The higher ones of reciprocal pairs that are cheap enough, or the cheapest of them, join the lower ones; false if nobody does.
    __device__ bool join(const MergeView& view, BlockShared& shared) const {
        const MergeWorkspace& layout = view.layout;
        const WardParameters& ward = parameters.ward;
        const size_t row = view.row();
        const int32_t* partner = layout.partner + row;
        const float* worth = layout.worth + row;
        uint8_t* joins = layout.mask + row;
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) {
            const int32_t other = partner[slot];
            joins[slot] = other >= 0 && other < slot && partner[other] == slot && (ward.pairs >= 0 || -worth[slot] < ward.limit);
            layout.source[row + slot] = -1;
        }
        __syncthreads();
        if (ward.pairs >= 0) keep_worthiest(worth, shape.patches, layout.left[view.b], joins, shared);
        const int32_t count = collect(
            shape.patches, [&](int32_t slot) { return joins[slot]; }, [](int32_t slot) { return slot; }, layout.joined + row, 0, shared);
        if (count == 0) return false;
        if (threadIdx.x == 0) {
            layout.joins[view.b] = count;
            layout.left[view.b] -= count;
        }
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) {
            const int32_t end = layout.into[row + slot];
            if (joins[end]) layout.into[row + slot] = partner[end];
            if (joins[slot]) merge(view, slot, partner[slot]);
        }
        __syncthreads();
        return true;
    }

    __device__ void merge(const MergeView& view, int32_t slot, int32_t other) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row();
        const float own = layout.mass[row + slot], sum = add(layout.mass[row + other], own);
        layout.share[row + slot] = divide(own, sum);
        layout.mass[row + other] = sum;
        layout.inverse[row + other] = divide(1.0f, sum);
        layout.length[row + slot] = kNoDamage;
        layout.source[row + other] = slot;
    }

    __device__ void finish(const MergeView& view, char* dynamic, BlockShared& shared) const {
        const MergeWorkspace& layout = view.layout;
        const size_t row = view.row();
        uint8_t* stays = layout.mask + row;
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) {
            stays[slot] = view.live(slot) && layout.into[row + slot] == slot;
            layout.worth[row + slot] = ranked(layout.mass[row + slot]);
        }
        __syncthreads();
        if (parameters.most > 0) keep_worthiest(layout.worth + row, shape.patches, parameters.most, stays, shared);
        const int32_t count = collect(
            shape.patches, [&](int32_t slot) { return stays[slot]; }, [](int32_t slot) { return slot; }, layout.slots + row, 0, shared);
        finish_merging(view, parameters.loses, count, dynamic);
    }
};

}  // namespace

cudaError_t decide_wards_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream) {
    const MergeWorkspace layout(workspace, parameters, shape);
    const int64_t rounds = parameters.ward.rounds < shape.patches ? parameters.ward.rounds : shape.patches;  // each merges a pair or ends it
    const int32_t blocks = stage_blocks(shape.batch, shape.patches);
    const Stages stages{shape.batch, blocks, blocks, rounds == 0 ? 1 : static_cast<int32_t>(2 * rounds)};
    return launch_stages(WardSite{parameters, in, shape, workspace}, stages, layout.counters, finish_bytes(shape), stream);
}

}  // namespace vitprune
