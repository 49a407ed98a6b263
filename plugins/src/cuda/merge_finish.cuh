// SPDX-License-Identifier: Apache-2.0
//
// What all merging sites do once it is decided who joins whom: lists that the second launch writes from. For one block per image.
#pragma once

#include "cuda/merge_workspace.cuh"
#include "cuda/stages.cuh"

namespace vitprune {

struct MergeShared {
    BlockShared block;
    StageShared stage;
    float partial[kSoftmaxStrands];
};

// One image's part of a workspace, and what it is of.
struct MergeView {
    const MergeInputs& in;
    const MergeShape& shape;
    const MergeWorkspace& layout;
    int32_t b;

    __device__ size_t row() const { return static_cast<size_t>(b) * shape.patches; }
    __device__ bool live(int32_t slot) const { return in.valid == nullptr || in.valid[row() + slot] != 0; }
    __device__ float size(int32_t slot) const {
        return in.size == nullptr ? 1.0f : in.size[static_cast<size_t>(b) * shape.tokens() + shape.prefix + slot];
    }
    __device__ int64_t number(int32_t slot) const { return in.patch == nullptr ? slot : in.patch[row() + slot]; }
    __device__ const float* x(int32_t slot) const {
        return in.x + (static_cast<size_t>(b) * shape.tokens() + shape.prefix + slot) * shape.width;
    }
};

// A key whose largest is what std::max_element finds: the first of equals, and a NaN only where it comes first.
__device__ inline unsigned long long first_largest(float value, int32_t index) {
    if (value != value && index == 0) return ~0ull;
    return preference(value, index);
}

__device__ inline unsigned long long warp_largest(unsigned long long key) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) key = max(key, __shfl_xor_sync(kFullWarp, key, offset));
    return key;
}

// Appends test(n) ? value(n) of n = 0, 1, ... in order to out, of which `found` are there; returns how many are there then.
template <typename Test, typename Value>
__device__ int32_t collect(int32_t size, const Test& test, const Value& value, int32_t* out, int32_t found, BlockShared& shared) {
    for (int32_t base = 0; base < size; base += blockDim.x) {
        const int32_t n = base + static_cast<int32_t>(threadIdx.x);
        const bool wanted = n < size && test(n);
        unsigned long long total;
        const int32_t place = found + static_cast<int32_t>(block_inclusive_sum(wanted, total, shared)) - 1;
        if (wanted) out[place] = value(n);
        found += static_cast<int32_t>(total);
    }
    __syncthreads();
    return found;
}

// Unmarks all but the `limit` marked ones of the largest worth, ties to the lower one.
__device__ inline void keep_worthiest(const float* worth, int32_t size, int64_t limit, uint8_t* mask, BlockShared& shared) {
    if (limit >= size) return;
    if (limit > 0) {
        unsigned long long own = 0;
        for (int32_t n = threadIdx.x; n < size; n += blockDim.x) own += mask[n];
        if (block_reduce(own, Sum(), shared) > static_cast<unsigned long long>(limit)) {
            shrink_mask(worth, size, static_cast<int32_t>(limit), mask, shared);
        }
        return;
    }
    for (int32_t n = threadIdx.x; n < size; n += blockDim.x) mask[n] = 0;
    __syncthreads();
}

__device__ inline void note_members(const MergeView& view, char* dynamic) {
    const MergeWorkspace& layout = view.layout;
    const int32_t patches = view.shape.patches, size = power_of_two_above(patches);
    const size_t row = view.row();
    unsigned long long* keys = patches > kSharedPatches ? layout.keys + static_cast<size_t>(view.b) * size
                                                        : reinterpret_cast<unsigned long long*>(dynamic);
    for (int32_t slot = threadIdx.x; slot < size; slot += blockDim.x) {
        keys[slot] = slot < patches ? static_cast<unsigned long long>(layout.into[row + slot]) << 32 | static_cast<unsigned>(slot) : ~0ull;
        if (slot < patches) layout.begin[row + slot] = layout.end[row + slot] = 0;
    }
    block_sort(keys, size);
    for (int32_t n = threadIdx.x; n < patches; n += blockDim.x) {
        const int32_t target = static_cast<int32_t>(keys[n] >> 32);
        layout.members[row + n] = static_cast<int32_t>(keys[n] & 0xffffffffu);
        if (n == 0 || static_cast<int32_t>(keys[n - 1] >> 32) != target) layout.begin[row + target] = n;
        if (n + 1 == patches || static_cast<int32_t>(keys[n + 1] >> 32) != target) layout.end[row + target] = n + 1;
    }
}

// With into and the `count` slots that stay, in the order of their rows, in place and visible to the block.
__device__ inline void finish_merging(const MergeView& view, bool loses, int32_t count, char* dynamic) {
    const MergeWorkspace& layout = view.layout;
    const int32_t patches = view.shape.patches, originals = view.in.group == nullptr ? 0 : view.shape.originals;
    const size_t row = view.row();
    int32_t* slot_of = layout.slot_of + static_cast<size_t>(view.b) * view.shape.originals;
    if (threadIdx.x == 0) layout.counts[view.b] = count;
    for (int32_t slot = threadIdx.x; slot < patches; slot += blockDim.x) layout.stays[row + slot] = !loses;
    for (int32_t number = threadIdx.x; number < originals; number += blockDim.x) slot_of[number] = -1;
    __syncthreads();
    for (int32_t k = threadIdx.x; k < count; k += blockDim.x) layout.stays[row + layout.slots[row + k]] = 1;
    for (int32_t slot = threadIdx.x; slot < patches; slot += blockDim.x) {
        const int64_t number = view.number(slot);
        if (view.live(slot) && number >= 0 && number < originals) atomicMax(slot_of + number, slot);
    }
    note_members(view, dynamic);
}

inline size_t finish_bytes(const MergeShape& shape) { return shared_bytes(shape.patches); }

// Blocks per image for `rows` rows that are walked by one warp each.
inline int32_t stage_blocks(int32_t batch, int32_t rows) {
    constexpr int32_t kAtOnce = 4096, kMost = 128;  // blocks that a device has room for, by far
    const int32_t useful = (rows + kSoftmaxStrands / kWarp - 1) / (kSoftmaxStrands / kWarp), fair = kAtOnce / batch;
    const int32_t blocks = useful < fair ? useful : fair;
    return blocks < 1 ? 1 : blocks > kMost ? kMost : blocks;
}

}  // namespace vitprune
