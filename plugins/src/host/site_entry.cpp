// SPDX-License-Identifier: Apache-2.0
//
// C entry point of PruneSite on the host.
#include <new>

#include "host/prune_site.h"
#include "vitprune_plugin.h"

using namespace vitprune;

int32_t vp_prune_site_cpu(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes, const VpPruneSiteTensors* t,
                          int64_t* count) {
    SiteParameters parameters;
    SiteShape shape;
    int32_t status = check_site(attributes, parameters);
    if (status == VP_OK && !(sizes && t && count)) status = VP_NULL_POINTER;
    if (status == VP_OK) status = check_site_shape(parameters, *sizes, shape);
    if (status != VP_OK) return status;
    const SiteInputs in{{t->x, t->x_type}, {t->h, t->h_type}, {t->query, t->query_type}, {t->key, t->key_type},
                        {t->value, t->value_type}, t->score, t->theta, t->valid, t->patch};
    status = check_site_inputs(parameters, in);
    if (status != VP_OK || t->rows == nullptr || (t->rows2 != nullptr && t->h == nullptr)) return status != VP_OK ? status : VP_NULL_POINTER;
    try {
        const SiteDecision decided = decide_site(parameters, in, shape, one_by_one);
        *count = decided.selection.count;
        const SiteOutputs out{t->rows, t->rows2, t->index, t->keep, t->patch_out, t->kept, t->mask, t->score_kept, t->bias, *count};
        write_site(parameters, in, shape, decided, out, t->score_out, one_by_one);
        return VP_OK;
    } catch (const std::bad_alloc&) {
        return VP_OUT_OF_MEMORY;
    }
}
