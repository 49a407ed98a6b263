// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/pool.h"

#include <cstdio>

namespace vitprune {
namespace {

constexpr uint32_t kPoolApi = 17;
const OrtApi* pool_api = nullptr;

}  // namespace

void find_pool(const OrtApiBase* base) {
    unsigned major = 0, minor = 0;  // asking an older runtime for the interface would make it complain on the terminal
    const bool known = std::sscanf(base->GetVersionString(), "%u.%u", &major, &minor) == 2;
    if (known && (major > 1 || minor >= kPoolApi)) pool_api = base->GetApi(kPoolApi);
}

ForEach pool_of(OrtKernelContext* context) {
    if (pool_api == nullptr) return one_by_one;
    return [context](size_t count, const std::function<void(size_t)>& piece) {
        if (count < 2) return one_by_one(count, piece);
        const auto run = [](void* work, size_t i) { (*static_cast<const std::function<void(size_t)>*>(work))(i); };
        check(pool_api->KernelContext_ParallelFor(context, run, count, 0, const_cast<std::function<void(size_t)>*>(&piece)));
    };
}

}  // namespace vitprune
