// SPDX-License-Identifier: Apache-2.0
//
// Pieces of work on a stand-in for ONNX Runtime's pool, which calls them as a C library does: nothing may be thrown through it.
// Prints one line per case; a piece that throws through the pool ends the program by std::terminate.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "onnxruntime/pool.h"

namespace {

OrtApi api{};

OrtStatus* parallel_for(const OrtKernelContext*, void (*piece)(void*, size_t), size_t count, size_t, void* work) noexcept {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < count; ++i) threads.emplace_back([=]() noexcept { piece(work, i); });
    for (std::thread& thread : threads) thread.join();
    return nullptr;
}

// What comes out of eight pieces of which two fail.
template <typename Failure>
const char* outcome(const Failure& failure, int& whole) {
    std::atomic<int> done{0};
    try {
        vitprune::pool_of(nullptr)(8, [&](size_t i) {
            if (i == 3 || i == 5) throw failure;
            ++done;
        });
    } catch (const std::bad_alloc&) {
        whole = done;
        return "bad_alloc";
    } catch (const std::exception& error) {
        whole = done;
        return std::strcmp(error.what(), "planted") == 0 ? "planted" : "another";
    } catch (const vitprune::OrtFailure&) {
        whole = done;
        return "status";
    }
    whole = done;
    return "nothing";
}

}  // namespace

int main() {
    api.KernelContext_ParallelFor = parallel_for;
    const OrtApiBase base{[](uint32_t) noexcept -> const OrtApi* { return &api; }, []() noexcept { return "1.17.0"; }};
    vitprune::find_pool(&base);
    int whole = 0;
    const char* found = outcome(std::bad_alloc(), whole);
    std::printf("no memory: %s, %d whole\n", found, whole);
    found = outcome(std::runtime_error("planted"), whole);
    std::printf("exception: %s, %d whole\n", found, whole);
    found = outcome(vitprune::OrtFailure{nullptr}, whole);
    std::printf("refused: %s, %d whole\n", found, whole);
    std::atomic<int> all{0};
    vitprune::pool_of(nullptr)(8, [&](size_t) { ++all; });
    std::printf("none: %d whole\n", all.load());
    return 0;
}
