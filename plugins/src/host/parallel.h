// SPDX-License-Identifier: Apache-2.0
//
// Independent pieces of work, run by whoever has threads: ONNX Runtime's pool, or nobody.
#pragma once

#include <cstddef>
#include <functional>

namespace vitprune {

// Runs piece(0) .. piece(count - 1), in any order.
using ForEach = std::function<void(size_t count, const std::function<void(size_t)>& piece)>;

inline void one_by_one(size_t count, const std::function<void(size_t)>& piece) {
    for (size_t i = 0; i < count; ++i) piece(i);
}

}  // namespace vitprune
