// SPDX-License-Identifier: Apache-2.0
//
// Runs a block program on the host: blocks in a shuffled order, shared memory filled with garbage before each.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace vitprune {

template <typename Program>
cudaError_t launch_blocks(const Program& program, int32_t blocks, int32_t threads, size_t dynamic_bytes, cudaStream_t) {
    if (threads > Program::kMaxThreads || threads % 32 != 0) return 1;
    static std::mt19937 random(1);
    std::vector<unsigned int> order(blocks);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), random);
    for (const unsigned int block : order) {
        // operator new aligns for every fundamental type, as shared memory does
        const std::unique_ptr<char[]> dynamic(new char[dynamic_bytes + 1]);
        const auto shared = std::make_unique<typename Program::Shared>();
        std::memset(dynamic.get(), 0xa5, dynamic_bytes);
        std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof(*shared));
        emulator::block_index.x = block;
        emulator::run_block(threads, [&] { program(dynamic.get(), *shared); });
    }
    return cudaSuccess;
}

}  // namespace vitprune
