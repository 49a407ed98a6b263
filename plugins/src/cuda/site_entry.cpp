// SPDX-License-Identifier: Apache-2.0
//
// C entry points of PruneSite on device memory.
#include "cuda/site_launch.h"
#include "vitprune_plugin.h"

using namespace vitprune;

int32_t vp_prune_site_workspace(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes, size_t* bytes) {
    SiteParameters parameters;
    SiteShape shape;
    int32_t status = check_site(attributes, parameters);
    if (status == VP_OK && !(sizes && bytes)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_site_shape(parameters, *sizes, shape);
    if (status == VP_OK) *bytes = site_workspace(shape);
    return status;
}

int32_t vp_prune_site_cuda(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes, const VpPruneSiteTensors* t,
                           void* workspace, size_t workspace_bytes, int64_t* count, void* stream) {
    SiteParameters parameters;
    SiteShape shape;
    int32_t status = check_site(attributes, parameters);
    if (status == VP_OK && !(sizes && t && workspace && count && t->rows)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_site_shape(parameters, *sizes, shape);
    if (status != VP_OK) return status;
    const SiteInputs in{{t->x, t->x_type}, {t->h, t->h_type}, {t->query, t->query_type}, {t->key, t->key_type},
                        {t->value, t->value_type}, t->score, t->theta, t->valid, t->patch};
    status = check_site_inputs(parameters, in);
    if (status == VP_OK && t->rows2 != nullptr && t->h == nullptr) status = VP_NULL_POINTER;
    if (status == VP_OK && workspace_bytes < site_workspace(shape)) status = VP_SMALL_WORKSPACE;
    if (status != VP_OK) return status;
    const int64_t fixed = parameters.sample.padded ? row_limit(parameters.sample, shape.patches) : 0;
    const SiteOutputs out{t->rows, t->rows2, t->index, t->keep, t->patch_out, t->kept, t->mask, t->score_kept, t->bias, fixed};
    const cudaStream_t own = static_cast<cudaStream_t>(stream);
    cudaError_t error = select_site_on_device(parameters, in, shape, workspace, own);
    if (error == cudaSuccess) error = write_site_on_device(parameters, in, shape, out, count, t->score_out, workspace, own);
    return error == cudaSuccess ? VP_OK : VP_CUDA_ERROR;
}
