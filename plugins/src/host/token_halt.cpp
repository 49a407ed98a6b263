// SPDX-License-Identifier: Apache-2.0
#include "host/token_halt.h"

#include <algorithm>

#include "host/dispatch.h"

namespace vitprune {
namespace {

VP_WIDE void scores(const HaltParameters& parameters, const float* values, int64_t count, float* out) {
    for (int64_t n = 0; n < count; ++n) out[n] = halting_score(parameters, values[n]);
}

}  // namespace

std::vector<float> halt_totals(const HaltParameters& parameters, const HaltInputs& in, const HaltShape& shape, float* told) {
    const int64_t rows = static_cast<int64_t>(shape.batch) * shape.tokens;
    std::vector<float> values(rows), total(rows);
    for (int64_t n = 0; n < rows; ++n) values[n] = in.x[n * shape.width + parameters.channel];
    scores(parameters, values.data(), rows, total.data());
    if (told != nullptr) std::copy(total.begin(), total.end(), told);
    for (int64_t n = 0; in.total != nullptr && n < rows; ++n) total[n] = add(in.total[n], total[n]);
    return total;
}

void halt_prefix(const HaltParameters& parameters, const HaltInputs& in, const HaltShape& shape, const float* total, float* remainder,
                 float* output) {
    const int64_t prefix = parameters.site.prefix, width = shape.width;
    for (int64_t b = 0; b < shape.batch; ++b) {
        for (int64_t p = 0; p < prefix; ++p) {
            const int64_t row = b * shape.tokens + p, at = b * prefix + p;
            const float* x = in.x + row * width;
            const float before = in.remainder == nullptr ? 1.0f : in.remainder[at];
            const bool active = in.total == nullptr || in.total[row] < parameters.limit;
            HaltStep step{active ? before : 0.0f, before};
            if (!parameters.last) {
                step = halt_step(parameters.limit, active, halting_score(parameters, x[parameters.channel]), total[row], before);
            }
            remainder[at] = step.remainder;
            for (int64_t c = 0; c < width; ++c) {
                const float share = mul(x[c], step.weight);
                output[at * width + c] = in.output == nullptr ? share : add(in.output[at * width + c], share);
            }
        }
    }
}

std::vector<float> halt_left(const HaltParameters& parameters, const HaltShape& shape, const float* total) {
    const int64_t prefix = parameters.site.prefix, patches = shape.tokens - prefix;
    std::vector<float> left(shape.batch * patches);
    for (int64_t b = 0; b < shape.batch; ++b) {
        const float* sums = total + b * shape.tokens;
        bool alive = !parameters.exits;
        for (int64_t p = 0; p < prefix; ++p) alive |= sums[p] < parameters.limit;
        for (int64_t j = 0; j < patches; ++j) left[b * patches + j] = alive ? add(parameters.limit, -sums[prefix + j]) : -1.0f;
    }
    return left;
}

void halt_carry(const HaltParameters& parameters, const HaltShape& shape, const float* total, const Selection* selection,
                float* carried, int32_t* mask) {
    const int64_t prefix = parameters.site.prefix;
    const int64_t rows = selection == nullptr ? shape.tokens : prefix + selection->count;
    for (int64_t b = 0; b < shape.batch; ++b) {
        const float* sums = total + b * shape.tokens;
        for (int64_t r = 0; r < rows; ++r) {
            float sum = kHaltPad;
            if (selection == nullptr || r < prefix) {
                sum = sums[r];
            } else if (const std::vector<int32_t>& kept = selection->rows[b]; r - prefix < static_cast<int64_t>(kept.size())) {
                sum = sums[prefix + kept[r - prefix]];
            }
            if (carried != nullptr) carried[b * rows + r] = sum;
            if (mask != nullptr) mask[b * rows + r] = sum < parameters.limit;
        }
    }
}

}  // namespace vitprune
