// SPDX-License-Identifier: Apache-2.0
//
// C entry points of the merging sites on the host.
#include <new>

#include "host/merge_decision.h"
#include "vitprune_plugin.h"

using namespace vitprune;

int32_t vp_merge_max_count(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, int64_t* max_count) {
    MergeParameters parameters;
    MergeShape shape;
    int32_t status = check_merge(attributes, parameters);
    if (status == VP_OK && !(sizes && max_count)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_merge_shape(parameters, *sizes, shape);
    if (status == VP_OK) *max_count = merge_limit(parameters, shape.patches);
    return status;
}

int32_t vp_merge_cpu(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, const VpMergeTensors* tensors, int64_t* count) {
    MergeParameters parameters;
    MergeShape shape;
    int32_t status = check_merge(attributes, parameters);
    if (status == VP_OK && !(sizes && tensors && count && tensors->rows)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_merge_shape(parameters, *sizes, shape);
    if (status != VP_OK) return status;
    const MergeInputs in = merge_inputs(*tensors);
    status = check_merge_inputs(parameters, shape, in);
    if (status == VP_OK && tensors->group_out != nullptr && in.group == nullptr) status = VP_NULL_POINTER;
    if (status != VP_OK) return status;
    try {
        const MergeDecision decided = decide_merge(parameters, in, shape, one_by_one);
        if (!decided.fits) return VP_NO_ROOM;
        *count = decided.count;
        write_merge(parameters, in, shape, decided, merge_outputs(*tensors, decided.count), one_by_one);
        return VP_OK;
    } catch (const std::bad_alloc&) {
        return VP_OUT_OF_MEMORY;
    }
}
