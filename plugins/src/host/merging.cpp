// SPDX-License-Identifier: Apache-2.0
#include "host/dispatch.h"
#include "host/merging.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vitprune {
namespace {

constexpr float kShortest = 1e-12f;
constexpr float kHidden = -1e4f;

// out += share * (row - own)
VP_WIDE void move_towards(float* out, const float* row, const float* own, float share, int64_t width) {
    for (int64_t c = 0; c < width; ++c) out[c] += share * (row[c] - own[c]);
}

// The mean of a row and those that join it.
void mean_row(const MergeImage& image, const Merging& merging, Mean mean, int64_t slot, const std::vector<int64_t>& members,
              float* out) {
    const auto weight = [&](int64_t one) { return mean == Mean::kSizes ? image.size_of(one) : merging.mass[one]; };
    float total = weight(slot);
    for (const int64_t one : members) total += weight(one);
    const float* own = image.row(slot);
    std::copy(own, own + image.width, out);
    for (const int64_t one : members) {
        const float share = weight(one) / total;
        move_towards(out, image.row(one), own, share, image.width);
    }
    if (mean == Mean::kSizes) return;
    float largest = norm_of(own, image.width);
    for (const int64_t one : members) largest = std::max(largest, norm_of(image.row(one), image.width));
    const float factor = largest / std::max(norm_of(out, image.width), kShortest);
    for (int64_t c = 0; c < image.width; ++c) out[c] *= factor;
}

// Patches follow the row that represents them; where rows can be lost, patches of a lost one have none: -1.
void write_group(const MergeImage& image, const Merging& merging, bool loses, int64_t* group) {
    std::vector<int64_t> slot_of(image.originals, -1);
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        if (image.live(slot)) slot_of[image.number(slot)] = slot;
    }
    std::vector<uint8_t> kept(image.patches, loses ? 0 : 1);
    for (const int64_t slot : merging.kept) kept[slot] = 1;
    for (int64_t one = 0; one < image.originals; ++one) {
        const int64_t number = image.group[one];
        const int64_t slot = number < 0 ? -1 : slot_of[number];
        const int64_t end = slot < 0 ? -1 : merging.into[slot];
        group[one] = end < 0 ? number : kept[end] ? image.number(end) : -1;
    }
}

}  // namespace

VP_WIDE float norm_of(const float* row, int64_t width) {
    constexpr int64_t kLanes = 16;
    float lanes[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= width; c += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += row[c + lane] * row[c + lane];
    }
    for (; c < width; ++c) lanes[0] += row[c] * row[c];
    float total = 0.0f;
    for (const float lane : lanes) total += lane;
    return std::sqrt(total);
}

VP_WIDE void signed_sums(const float* rows, int64_t count, int64_t width, const float* signs, int64_t sums, float* out) {
    for (int64_t row = 0; row < count; ++row, rows += width, out += sums) {
        for (int64_t c = 0; c < sums; ++c) out[c] = c < width ? rows[c] * signs[c] : 0.0f;
        for (int64_t from = sums; from < width; from += sums) {
            const int64_t here = std::min(sums, width - from);
            for (int64_t c = 0; c < here; ++c) out[c] += rows[from + c] * signs[from + c];
        }
    }
}

void write_mask(const MergeOutput& out, int64_t prefix, float* mask) {
    const int64_t tokens = prefix + out.count;
    for (int64_t query = 0; query < tokens; ++query) std::copy(out.bias, out.bias + tokens, mask + query * tokens);
}

void keep_heaviest(std::vector<int64_t>& slots, const std::vector<float>& mass, int64_t limit) {
    if (static_cast<int64_t>(slots.size()) <= limit) return;
    std::nth_element(slots.begin(), slots.begin() + limit, slots.end(),
                     [&](int64_t a, int64_t b) {
                         const float first = ranked(mass[a]), second = ranked(mass[b]);
                         return first > second || (first == second && a < b);
                     });
    slots.resize(limit);
    std::sort(slots.begin(), slots.end());
}

void write_merged(const MergeImage& image, const Merging& merging, Mean mean, bool loses, const MergeOutput& out) {
    std::vector<std::vector<int64_t>> members(image.patches);
    std::vector<float> size(image.patches);
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        size[merging.into[slot]] += image.size_of(slot);
        if (merging.into[slot] != slot) members[merging.into[slot]].push_back(slot);
    }
    std::copy(image.x, image.x + image.prefix * image.width, out.rows);
    std::fill(out.size, out.size + image.prefix, 1.0f);
    std::fill(out.bias, out.bias + image.prefix, 0.0f);
    for (int64_t k = 0; k < out.count; ++k) {
        const bool real = k < static_cast<int64_t>(merging.kept.size());
        const int64_t slot = real ? merging.kept[k] : 0;
        out.index[k] = slot;
        out.keep[k] = real;
        out.size[image.prefix + k] = merging.into[slot] == slot ? size[slot] : image.size_of(slot);
        out.bias[image.prefix + k] = (out.proportional ? std::log(out.size[image.prefix + k]) : 0.0f) + (real ? 0.0f : kHidden);
        float* row = out.rows + (image.prefix + k) * image.width;
        if (members[slot].empty()) {
            std::copy(image.row(slot), image.row(slot) + image.width, row);
        } else {
            mean_row(image, merging, mean, slot, members[slot], row);
        }
    }
    if (out.group != nullptr) write_group(image, merging, loses, out.group);
}

}  // namespace vitprune
