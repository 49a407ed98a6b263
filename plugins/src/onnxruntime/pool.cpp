// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/pool.h"

#include <cstdio>
#include <exception>
#include <mutex>

namespace vitprune {
namespace {

constexpr uint32_t kPoolApi = 17;
const OrtApi* pool_api = nullptr;

// Pieces as ONNX Runtime's threads run them. It calls through C: what a piece throws waits here until all are through.
class Work {
public:
    explicit Work(const std::function<void(size_t)>& piece) : piece_(piece) {}

    static void run(void* work, size_t i) noexcept {
        Work& self = *static_cast<Work*>(work);
        try {
            self.piece_(i);
        } catch (...) {
            self.note(std::current_exception());
        }
    }

    void finish() const {
        if (first_ != nullptr) std::rethrow_exception(first_);
    }

private:
    void note(std::exception_ptr thrown) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (first_ == nullptr) first_ = thrown;
    }

    const std::function<void(size_t)>& piece_;
    std::mutex mutex_;
    std::exception_ptr first_;
};

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
        Work work(piece);
        check(pool_api->KernelContext_ParallelFor(context, Work::run, count, 0, &work));
        work.finish();
    };
}

}  // namespace vitprune
