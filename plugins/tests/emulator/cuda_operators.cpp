// SPDX-License-Identifier: Apache-2.0
//
// Operators of ONNX Runtime's CUDA execution provider, registered for the CPU: what they call is emulated. Attention behind a site is
// that of the CPU.
#include "onnxruntime/cuda_merge_operators.h"
#include "onnxruntime/cuda_site_operator.h"
#include "onnxruntime/packed_operator.h"

extern "C" VP_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(vitprune::kOrtApi);
    return vitprune::guarded(*api, [&] {
        OrtCustomOpDomain* domain = nullptr;
        vitprune::check(api->CreateCustomOpDomain("vitprune", &domain));
        vitprune::add_cuda_merge_operators(*api, domain, nullptr);
        vitprune::add_cuda_site_operator(*api, domain, nullptr);
        vitprune::add_packed_operator(*api, domain);
        vitprune::check(api->AddCustomOpDomain(options, domain));
    });
}
