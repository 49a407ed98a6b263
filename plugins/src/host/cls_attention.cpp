// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "host/dispatch.h"
#include "host/merging.h"

namespace vitprune {
namespace {

constexpr int64_t kLanes = 16;

VP_WIDE float dot(const float* a, const float* b, int64_t width) {
    float lanes[kLanes] = {};
    int64_t at = 0;
    for (; at + kLanes <= width; at += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += a[at + lane] * b[at + lane];
    }
    for (; at < width; ++at) lanes[0] += a[at] * b[at];
    float total = 0.0f;
    for (const float lane : lanes) total += lane;
    return total;
}

}  // namespace

std::vector<float> cls_attention(const Asking& asking) {
    const int64_t width = asking.width / asking.heads;
    std::vector<float> row(asking.tokens), received(asking.tokens);
    for (int64_t head = 0; head < asking.heads; ++head) {
        const float* query = asking.query + head * width;
        for (int64_t token = 0; token < asking.tokens; ++token) {
            row[token] = dot(query, asking.key + token * asking.width + head * width, width);
            if (asking.bias != nullptr) row[token] += asking.bias[token];
        }
        const float top = *std::max_element(row.begin(), row.end());
        float total = 0.0f;
        for (float& value : row) total += value = std::exp(value - top);
        for (int64_t token = 0; token < asking.tokens; ++token) received[token] += row[token] / total;
    }
    return received;
}

}  // namespace vitprune
