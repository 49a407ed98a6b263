// SPDX-License-Identifier: Apache-2.0
//
// Launch of a block program: a struct of arguments with a type Shared, a constant kMaxThreads and
// operator()(dynamic shared memory, Shared&). The tests have a second file of this name that runs a program on the host.
#pragma once

#include <cuda_runtime.h>

namespace vitprune {

template <typename Program>
__global__ void __launch_bounds__(Program::kMaxThreads) block_kernel(const Program program) {
    extern __shared__ __align__(16) char dynamic[];
    __shared__ typename Program::Shared shared;
    program(dynamic, shared);
}

template <typename Program>
cudaError_t launch_blocks(const Program& program, int32_t blocks, int32_t threads, size_t dynamic_bytes, cudaStream_t stream) {
    block_kernel<<<blocks, threads, dynamic_bytes, stream>>>(program);
    return cudaPeekAtLastError();
}

}  // namespace vitprune
