// SPDX-License-Identifier: Apache-2.0
//
// Device access to values whose element type is known only when a call is made.
#pragma once

#include "element.h"
#include "typed.h"

namespace vitprune {

// Calls `use` with a pointer of the values' own type to the one at `first`. All threads of a warp take the same way.
template <typename Use>
__device__ inline void with_elements(const Typed& values, int64_t first, const Use& use) {
    if (values.dtype == VP_FLOAT16) {
        use(static_cast<const Half*>(values.data) + first);
    } else if (values.dtype == VP_BFLOAT16) {
        use(static_cast<const Bfloat16*>(values.data) + first);
    } else {
        use(static_cast<const float*>(values.data) + first);
    }
}

template <typename Word>
__device__ inline void copy_words(const void* source, int64_t from, void* target, int64_t to, int32_t count) {
    const Word* read = static_cast<const Word*>(source) + from;
    Word* written = static_cast<Word*>(target) + to;
    for (int32_t i = threadIdx.x; i < count; i += blockDim.x) written[i] = read[i];
}

// A block copies values from one place to another of the same type.
__device__ inline void copy_elements(const Typed& source, int64_t from, void* target, int64_t to, int32_t count) {
    if (element_bytes(source.dtype) == 4) {
        copy_words<uint32_t>(source.data, from, target, to, count);
    } else {
        copy_words<uint16_t>(source.data, from, target, to, count);
    }
}

}  // namespace vitprune
