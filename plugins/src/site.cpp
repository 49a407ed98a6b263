// SPDX-License-Identifier: Apache-2.0
#include "site.h"

#include <algorithm>
#include <cstring>

namespace vitprune {
namespace {

constexpr const char* kForms[] = {"given", "per_head", "pooled", "sum", "mean", "head_share"};
constexpr const char* kCombines[] = {"nothing", "weighted", "mean"};

template <size_t Count>
int32_t position(const char* const (&table)[Count], const char* name) {
    const auto found = std::find_if(table, table + Count, [name](const char* one) { return std::strcmp(one, name) == 0; });
    return found == table + Count ? -1 : static_cast<int32_t>(found - table);
}

}  // namespace

const char* site_form_name(SiteForm form) { return kForms[static_cast<int32_t>(form)]; }
const char* combine_name(Combine combine) { return kCombines[static_cast<int32_t>(combine)]; }

int32_t check_site(const VpPruneSiteAttributes* attributes, SiteParameters& parameters) {
    if (attributes == nullptr || attributes->form == nullptr || attributes->combine == nullptr) return VP_NULL_POINTER;
    const int32_t form = position(kForms, attributes->form), combine = position(kCombines, attributes->combine);
    if (form < 0) return VP_UNKNOWN_FORM;
    if (combine < 0) return VP_UNKNOWN_COMBINE;
    if (attributes->heads < 1 || attributes->heads > 1024) return VP_BAD_HEADS;
    if (attributes->prefix_tokens < 0 || attributes->prefix_tokens > VP_MAX_PATCHES) return VP_BAD_PREFIX;
    if (attributes->originals < 0) return VP_BAD_PATCHES;
    parameters.form = static_cast<SiteForm>(form);
    parameters.combine = static_cast<Combine>(combine);
    parameters.heads = static_cast<int32_t>(attributes->heads);
    parameters.prefix = static_cast<int32_t>(attributes->prefix_tokens);
    parameters.originals = attributes->originals;
    return check_sample(&attributes->sample, parameters.sample);
}

int32_t check_site_shape(const SiteParameters& parameters, const VpPruneSiteSizes& sizes, SiteShape& shape) {
    ScoreShape checked;
    const int64_t head_width = std::max<int64_t>(sizes.head_width, 1);
    const int32_t status = check_score_shape(sizes.batch, parameters.heads, sizes.patches, parameters.prefix, head_width, checked);
    if (status != VP_OK) return status;
    constexpr int64_t kWidest = 1 << 20;
    if (sizes.width < 1 || sizes.width > kWidest || sizes.width2 < 0 || sizes.width2 > kWidest) return VP_BAD_HEADS;
    if (parameters.form != SiteForm::kGiven && sizes.head_width < 1) return VP_BAD_HEADS;
    shape = {checked.batch, checked.patches, checked.prefix, static_cast<int32_t>(sizes.width), static_cast<int32_t>(sizes.width2),
             checked.heads, checked.width};
    return VP_OK;
}

int32_t check_site_inputs(const SiteParameters& parameters, const SiteInputs& in) {
    if (in.x.data == nullptr) return VP_NULL_POINTER;
    for (const Typed& one : {in.x, in.h, in.query, in.key, in.value}) {
        if (one.data != nullptr && !is_dtype(one.dtype)) return VP_UNKNOWN_DTYPE;
    }
    if (parameters.form == SiteForm::kGiven) return in.score != nullptr ? VP_OK : VP_NULL_POINTER;
    const bool valued = in.value.data != nullptr || !reads_value(parameters.form);
    const bool scored = in.query.data != nullptr && in.key.data != nullptr && valued;
    return scored && parameters.prefix > 0 ? VP_OK : scored ? VP_BAD_PREFIX : VP_NULL_POINTER;
}

}  // namespace vitprune
