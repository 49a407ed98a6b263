// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/entry.cpp"
#include "cuda/packed_attention.cu"
#include "cuda/prune_site.cu"
#include "cuda/site_entry.cpp"
#include "cuda/site_gather.cu"
#include "cuda/token_sample.cu"
#include "cuda/token_score.cu"

namespace emulator {

Index thread_index;
Index block_index;
Index block_size;

namespace {

constexpr size_t kStack = 64 * 1024;

struct Barrier {
    unsigned int arrived = 0;
    unsigned int generation = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done = false;
};

std::vector<Fiber> fibers(1024);
std::vector<uint64_t> slots(1024);
std::vector<Barrier> warp_barriers(32);
Barrier block_barrier;
ucontext_t scheduler;
const std::function<void()>* current_body;
unsigned long long progress;  // barriers passed and threads finished: a round without any is a deadlock

void wait(Barrier& barrier, unsigned int size) {
    const unsigned int generation = barrier.generation;
    if (++barrier.arrived == size) {
        barrier.arrived = 0;
        ++barrier.generation;
        ++progress;
        return;
    }
    while (barrier.generation == generation) swapcontext(&fibers[thread_index.x].context, &scheduler);
}

void enter() {
    (*current_body)();
    fibers[thread_index.x].done = true;
    ++progress;
}

void start(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
}

// Gives every unfinished thread of a warp one turn in random order; false when none got past a barrier.
bool run_round(unsigned int warp, std::mt19937& random) {
    std::vector<unsigned int> order;
    for (unsigned int i = warp * 32; i < warp * 32 + 32; ++i) {
        if (!fibers[i].done) order.push_back(i);
    }
    std::shuffle(order.begin(), order.end(), random);
    const unsigned long long before = progress;
    for (const unsigned int thread : order) {
        thread_index.x = thread;
        swapcontext(&scheduler, &fibers[thread].context);
    }
    return progress != before;
}

}  // namespace

uint64_t& slot(unsigned int thread) { return slots[thread]; }
void wait_block() { wait(block_barrier, block_size.x); }
void wait_warp() { wait(warp_barriers[thread_index.x / 32], 32); }

void run_block(unsigned int threads, const std::function<void()>& body) {
    static std::mt19937 random(7);
    block_size.x = threads;
    current_body = &body;
    block_barrier = {};
    std::fill(warp_barriers.begin(), warp_barriers.end(), Barrier{});
    std::vector<unsigned int> warps(threads / 32);
    std::iota(warps.begin(), warps.end(), 0u);
    for (unsigned int i = 0; i < threads; ++i) start(fibers[i]);
    const auto unfinished = [threads] {
        return std::any_of(fibers.begin(), fibers.begin() + threads, [](const Fiber& fiber) { return !fiber.done; });
    };
    while (unfinished()) {
        // Each warp runs as far as it can before the next one gets a turn.
        bool moved = false;
        std::shuffle(warps.begin(), warps.end(), random);
        for (const unsigned int warp : warps) {
            while (run_round(warp, random)) moved = true;
        }
        if (!moved) {
            std::fprintf(stderr, "emulated block: deadlock at a barrier\n");
            std::abort();
        }
    }
}

}  // namespace emulator
