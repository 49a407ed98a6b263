// SPDX-License-Identifier: Apache-2.0
#include "host/typed_rows.h"

#include <algorithm>

#include "narrow.h"

namespace vitprune {
namespace {

template <typename Element>
const float* widened(const Typed& values, int64_t first, int64_t count, std::vector<float>& room) {
    const Element* from = static_cast<const Element*>(values.data) + first;
    room.resize(count);
    std::transform(from, from + count, room.begin(), [](Element value) { return widen(value); });
    return room.data();
}

template <typename Element>
void narrowed(const float* values, int64_t count, void* target) {
    std::transform(values, values + count, static_cast<Element*>(target), [](float value) { return narrow<Element>(value); });
}

}  // namespace

const float* as_floats(const Typed& values, int64_t first, int64_t count, std::vector<float>& room) {
    if (values.dtype == VP_FLOAT32) return static_cast<const float*>(values.data) + first;
    return values.dtype == VP_FLOAT16 ? widened<Half>(values, first, count, room) : widened<Bfloat16>(values, first, count, room);
}

void round_to(int32_t dtype, const float* values, int64_t count, void* target) {
    if (dtype == VP_FLOAT32) narrowed<float>(values, count, target);
    if (dtype == VP_FLOAT16) narrowed<Half>(values, count, target);
    if (dtype == VP_BFLOAT16) narrowed<Bfloat16>(values, count, target);
}

}  // namespace vitprune
