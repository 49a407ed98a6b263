// SPDX-License-Identifier: Apache-2.0
//
// The second launch of a merging site: many blocks per image, each with its share of the rows, one row at a time, and one more for
// everything that is no row. Where K is not known before, it is the largest count that the first launch left in the workspace.
#include "block_launch.cuh"
#include "cuda/merge_finish.cuh"
#include "cuda/merge_kinds.h"
#include "cuda/merge_launch.h"
#include "cuda/score.cuh"

namespace vitprune {
namespace {

constexpr int32_t kRowBlocks = 128;  // at most, per image

struct MergeWriteProgram {
    using Shared = MergeShared;
    static constexpr int kMaxThreads = kScoreThreads;
    MergeParameters parameters;
    MergeInputs in;
    MergeShape shape;
    MergeOutputs out;  // count <= 0: K is the largest count of the batch
    int32_t row_blocks;
    int64_t* count_out;
    void* workspace;

    __device__ void operator()(char*, Shared& shared) const {
        const int32_t blocks = row_blocks + 1, b = static_cast<int32_t>(blockIdx.x) / blocks, part = static_cast<int32_t>(blockIdx.x) % blocks;
        const MergeWorkspace layout(workspace, parameters, shape);
        const MergeView view{in, shape, layout, b};
        int64_t count = out.count;
        if (count <= 0) {
            unsigned long long largest = 1;
            for (int32_t i = threadIdx.x; i < shape.batch; i += blockDim.x) {
                largest = max(largest, static_cast<unsigned long long>(layout.counts[i]));
            }
            count = static_cast<int64_t>(block_reduce(largest, Maximum(), shared.block));
        }
        if (part < row_blocks) {
            rows(view, part, count, shared.partial);
        } else {
            slots(view, count);
            groups(view);
            if (b == 0 && threadIdx.x == 0 && count_out != nullptr) *count_out = count;
        }
    }

    // The slot of row k among the slots, 0 on pads.
    __device__ static int32_t slot_of_row(const MergeView& view, int64_t k) {
        return k < view.layout.counts[view.b] ? view.layout.slots[view.row() + k] : 0;
    }

    __device__ void rows(const MergeView& view, int32_t part, int64_t count, float* shared) const {
        const int64_t all = shape.prefix + count;
        for (int64_t r = part; r < all; r += row_blocks) {
            float* target = out.rows + (view.b * all + r) * shape.width;
            const float* own = in.x + (static_cast<int64_t>(view.b) * shape.tokens() + r) * shape.width;
            int32_t begin = 0, end = 0, slot = -1;
            if (r >= shape.prefix) {
                slot = slot_of_row(view, r - shape.prefix);
                own = view.x(slot);
                begin = view.layout.begin[view.row() + slot];
                end = view.layout.end[view.row() + slot];
            }
            if (end - begin > 1) {
                mean(view, slot, begin, end, target, shared);
            } else {
                for (int32_t c = threadIdx.x; c < shape.width; c += blockDim.x) target[c] = own[c];
            }
        }
    }

    __device__ float weight(const MergeView& view, int32_t slot) const {
        return parameters.kind == MergeKind::kWard ? view.layout.weight[view.row() + slot] : view.size(slot);
    }

    // The mean of a row and those that join it, in the order of the host, one thread per channel.
    __device__ void mean(const MergeView& view, int32_t slot, int32_t begin, int32_t end, float* target, float* shared) const {
        const int32_t* members = view.layout.members + view.row();
        const float* own = view.x(slot);
        float total = weight(view, slot);
        for (int32_t n = begin; n < end; ++n) {
            if (members[n] != slot) total = add(total, weight(view, members[n]));
        }
        for (int32_t c = threadIdx.x; c < shape.width; c += blockDim.x) {
            const float start = own[c];
            float value = start;
            for (int32_t n = begin; n < end; ++n) {
                const int32_t member = members[n];
                if (member == slot) continue;
                value = add(value, mul(divide(weight(view, member), total), add(view.x(member)[c], -start)));
            }
            target[c] = value;
        }
        if (parameters.kind != MergeKind::kWard) return;
        const float* norm = view.layout.norm + view.row();
        float largest = norm[slot];
        for (int32_t n = begin; n < end; ++n) {
            if (members[n] != slot) largest = larger(largest, norm[members[n]]);
        }
        __syncthreads();
        if (threadIdx.x < kWarp) {
            const float square = warp_dot(target, target, shape.width);
            if (threadIdx.x == 0) *shared = divide(largest, larger(square_root(square), kShortest));
        }
        __syncthreads();
        const float factor = *shared;
        for (int32_t c = threadIdx.x; c < shape.width; c += blockDim.x) target[c] = mul(target[c], factor);
    }

    __device__ void slots(const MergeView& view, int64_t count) const {
        const int64_t all = shape.prefix + count, b = view.b, real = view.layout.counts[view.b];
        for (int64_t r = threadIdx.x; r < all; r += blockDim.x) {
            const int64_t k = r - shape.prefix;
            if (k < 0) {
                if (out.size != nullptr) out.size[b * all + r] = 1.0f;
                if (out.bias != nullptr) out.bias[b * all + r] = 0.0f;
                continue;
            }
            const bool here = k < real;
            const int32_t slot = slot_of_row(view, k);
            const int64_t number = view.number(slot);
            const float size = whole(view, slot);
            if (out.size != nullptr) out.size[b * all + r] = size;
            if (out.bias != nullptr) out.bias[b * all + r] = merged_bias(parameters.proportional, size, here);
            if (out.index != nullptr) out.index[b * count + k] = slot;
            if (out.keep != nullptr) out.keep[b * count + k] = here;
            if (out.patch != nullptr) out.patch[b * count + k] = number;
            if (out.kept != nullptr) out.kept[b * count + k] = here ? number : -1;
        }
        if (out.score == nullptr || parameters.kind != MergeKind::kSampled) return;
        const SiteShape site{shape.batch, shape.patches, shape.prefix, shape.width, 0, shape.heads, shape.depth};
        const float* score = SiteWorkspace(view.layout.sampling, site).score + view.row();
        for (int32_t slot = threadIdx.x; slot < shape.patches; slot += blockDim.x) out.score[view.row() + slot] = score[slot];
    }

    // Patches that a row stands for, added up in the order of the slots.
    __device__ float whole(const MergeView& view, int32_t slot) const {
        if (view.layout.into[view.row() + slot] != slot) return view.size(slot);
        const int32_t* members = view.layout.members + view.row();
        float size = 0.0f;
        for (int32_t n = view.layout.begin[view.row() + slot]; n < view.layout.end[view.row() + slot]; ++n) {
            size = add(size, view.size(members[n]));
        }
        return size;
    }

    // Patches follow the row that represents them.
    __device__ void groups(const MergeView& view) const {
        if (out.group == nullptr || in.group == nullptr) return;
        const int64_t first = static_cast<int64_t>(view.b) * shape.originals;
        for (int32_t one = threadIdx.x; one < shape.originals; one += blockDim.x) {
            const int64_t number = in.group[first + one];
            const int32_t slot = number < 0 || number >= shape.originals ? -1 : view.layout.slot_of[first + number];
            const int32_t end = slot < 0 ? -1 : view.layout.into[view.row() + slot];
            out.group[first + one] = end < 0 ? number : view.layout.stays[view.row() + end] ? view.number(end) : -1;
        }
    }
};

}  // namespace

size_t merge_workspace(const MergeParameters& parameters, const MergeShape& shape) {
    return MergeWorkspace(nullptr, parameters, shape).bytes;
}

int32_t* merge_counts(const MergeParameters& parameters, const MergeShape& shape, void* workspace) {
    return MergeWorkspace(workspace, parameters, shape).counts;
}

cudaError_t decide_merge_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, void* workspace,
                                   cudaStream_t stream) {
    switch (parameters.kind) {
        case MergeKind::kPair: return decide_pairs_on_device(parameters, in, shape, workspace, stream);
        case MergeKind::kWard: return decide_wards_on_device(parameters, in, shape, workspace, stream);
        case MergeKind::kSampled: return decide_sampled_on_device(parameters, in, shape, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

cudaError_t write_merge_on_device(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape,
                                  const MergeOutputs& out, int64_t* count_out, void* workspace, cudaStream_t stream) {
    const int32_t row_blocks = shape.tokens() < kRowBlocks ? shape.tokens() : kRowBlocks;
    const MergeWriteProgram program{parameters, in, shape, out, row_blocks, count_out, workspace};
    return launch_blocks(program, shape.batch * (row_blocks + 1), kScoreThreads, 0, stream);
}

}  // namespace vitprune
