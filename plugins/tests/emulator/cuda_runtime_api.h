// SPDX-License-Identifier: Apache-2.0
//
// The part of CUDA that the kernels use, for the host: one thread block at a time, its threads as fibers that run from one
// barrier to the next in a random order, with warps running ahead of each other, so that a missing barrier gives wrong
// results. Only for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#define __host__
#define __device__

using cudaError_t = int;
using cudaStream_t = void*;
using cudaEvent_t = void*;
constexpr cudaError_t cudaSuccess = 0;
constexpr cudaError_t cudaErrorInvalidValue = 1;

inline const char* cudaGetErrorString(cudaError_t) { return "the emulator refused a launch"; }

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
    std::memset(data, value, bytes);
    return cudaSuccess;
}

// There is one kind of memory, and everything is done when a call returns.
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

inline cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(target, source, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t) {
    *data = std::memset(::operator new(bytes), 0xa5, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
    ::operator delete(data);
    return cudaSuccess;
}

namespace emulator {

struct Index {
    unsigned int x;
};

// State of the running fiber.
extern Index thread_index;
extern Index block_index;
extern Index block_size;

// Runs `body` once per thread of a block.
void run_block(unsigned int threads, const std::function<void()>& body);

void wait_block();
void wait_warp();

// One 64-bit slot per thread, through which shuffles pass values.
uint64_t& slot(unsigned int thread);

template <typename Value>
Value exchange(Value value, unsigned int source_lane) {
    const unsigned int own = thread_index.x;
    const unsigned int first = own / 32 * 32;
    std::memcpy(&slot(own), &value, sizeof value);
    wait_warp();
    Value result = value;
    if (source_lane < 32) std::memcpy(&result, &slot(first + source_lane), sizeof result);
    wait_warp();
    return result;
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)

using std::max;
using std::min;

inline void __syncthreads() { emulator::wait_block(); }
inline void __syncwarp() { emulator::wait_warp(); }
inline void __threadfence() {}

template <typename Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
    return emulator::exchange(value, threadIdx.x % 32 ^ static_cast<unsigned>(mask));
}

template <typename Value>
Value __shfl_down_sync(unsigned, Value value, int distance) {
    return emulator::exchange(value, threadIdx.x % 32 + static_cast<unsigned>(distance));
}

template <typename Value>
Value __shfl_up_sync(unsigned, Value value, int distance) {
    return emulator::exchange(value, threadIdx.x % 32 - static_cast<unsigned>(distance));
}

inline unsigned int atomicAdd(unsigned int* target, unsigned int value) {
    const unsigned int before = *target;
    *target += value;
    return before;
}

inline int atomicMax(int* target, int value) {
    const int before = *target;
    *target = max(before, value);
    return before;
}

// Blocks run one after the other here: one that waits would wait forever.
inline void __nanosleep(unsigned int) {
    std::fprintf(stderr, "emulated block: waits for one that starts later\n");
    std::abort();
}

inline float __ldcg(const float* source) { return *source; }
