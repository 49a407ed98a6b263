// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/site_operator.h"

#include <algorithm>

#include "host/prune_site.h"
#include "onnxruntime/pool.h"
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

template <typename Types>
class SiteKernel {
public:
    static constexpr const char* kName = "PruneSite";
    static constexpr Signature kReads = signature(Types::kInputs, 1), kWrites = signature(Types::kOutputs, 1);

    SiteKernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api), parameters_(read_site(api, info)) {}

    void compute(OrtKernelContext* context) const {
        const SiteTensors tensors(api_, context, parameters_);
        const ForEach each = pool_of(context);
        const SiteDecision decided = decide_site(parameters_, tensors.in, tensors.shape, each);
        const SiteResults made = site_results(api_, context, parameters_, tensors.shape, decided.selection.count);
        write_site(parameters_, tensors.in, tensors.shape, decided, made.out, made.score, each);
        if (made.shape != nullptr) std::copy(made.dims.begin(), made.dims.end(), made.shape);
    }

private:
    const OrtApi& api_;
    SiteParameters parameters_;
};

}  // namespace

void add_site_operators(const OrtApi& api, OrtCustomOpDomain* domain) {
    for_site_types([&](auto types) { add_operator<SiteKernel<decltype(types)>>(api, domain); });
}

}  // namespace vitprune
