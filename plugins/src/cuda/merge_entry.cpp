// SPDX-License-Identifier: Apache-2.0
//
// C entry points of the merging sites on device memory.
#include "cuda/merge_launch.h"
#include "vitprune_plugin.h"

using namespace vitprune;

int32_t vp_merge_workspace(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, size_t* bytes) {
    MergeParameters parameters;
    MergeShape shape;
    int32_t status = check_merge(attributes, parameters);
    if (status == VP_OK && !(sizes && bytes)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_merge_shape(parameters, *sizes, shape);
    if (status == VP_OK) *bytes = merge_workspace(parameters, shape);
    return status;
}

int32_t vp_merge_cuda(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, const VpMergeTensors* tensors, void* workspace,
                      size_t workspace_bytes, int64_t* count, void* stream) {
    MergeParameters parameters;
    MergeShape shape;
    int32_t status = check_merge(attributes, parameters);
    if (status == VP_OK && !(sizes && tensors && workspace && count && tensors->rows)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_merge_shape(parameters, *sizes, shape);
    if (status != VP_OK) return status;
    const MergeInputs in = merge_inputs(*tensors);
    status = check_merge_inputs(parameters, shape, in);
    if (status == VP_OK && tensors->group_out != nullptr && in.group == nullptr) status = VP_NULL_POINTER;
    if (status == VP_OK && workspace_bytes < merge_workspace(parameters, shape)) status = VP_SMALL_WORKSPACE;
    if (status != VP_OK) return status;
    const MergeOutputs out = merge_outputs(*tensors, parameters.padded ? parameters.most : 0);
    const cudaStream_t own = static_cast<cudaStream_t>(stream);
    cudaError_t error = decide_merge_on_device(parameters, in, shape, workspace, own);
    if (error == cudaSuccess) error = write_merge_on_device(parameters, in, shape, out, count, workspace, own);
    return error == cudaSuccess ? VP_OK : VP_CUDA_ERROR;
}
