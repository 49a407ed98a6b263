// SPDX-License-Identifier: Apache-2.0
#include "host/merging.h"

#include <algorithm>

#include "host/dot.h"

namespace vitprune {
namespace {

// out += share * (row - own)
VP_WIDE void move_towards(float* out, const float* row, const float* own, float share, int64_t width) {
    for (int64_t c = 0; c < width; ++c) out[c] = add(out[c], mul(share, add(row[c], -own[c])));
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
    for (const int64_t one : members) largest = larger(largest, norm_of(image.row(one), image.width));
    const float factor = largest / larger(norm_of(out, image.width), kShortest);
    for (int64_t c = 0; c < image.width; ++c) out[c] *= factor;
}

// Patches follow the row that represents them; where rows can be lost, patches of a lost one have none: -1.
void write_group(const MergeImage& image, const Merging& merging, bool loses, int64_t* group) {
    std::vector<int64_t> slot_of(image.originals, -1);
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        const int64_t number = image.number(slot);
        if (image.live(slot) && number >= 0 && number < image.originals) slot_of[number] = slot;
    }
    std::vector<uint8_t> kept(image.patches, loses ? 0 : 1);
    for (const int64_t slot : merging.kept) kept[slot] = 1;
    for (int64_t one = 0; one < image.originals; ++one) {
        const int64_t number = image.group[one];
        const int64_t slot = number < 0 || number >= image.originals ? -1 : slot_of[number];
        const int64_t end = slot < 0 ? -1 : merging.into[slot];
        group[one] = end < 0 ? number : kept[end] ? image.number(end) : -1;
    }
}

}  // namespace

VP_WIDE float norm_of(const float* row, int64_t width) { return square_root(dot(row, row, width)); }

VP_WIDE void norms_of(const float* rows, int64_t count, int64_t width, float floor, float* out) {
    for (int64_t n = 0; n < count; ++n, rows += width) out[n] = larger(square_root(dot(rows, rows, width)), floor);
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

void write_merged(const MergeImage& image, const Merging& merging, Mean mean, const MergeParameters& parameters, const MergeOutputs& out) {
    std::vector<std::vector<int64_t>> members(image.patches);
    std::vector<float> size(image.patches);
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        size[merging.into[slot]] += image.size_of(slot);
        if (merging.into[slot] != slot) members[merging.into[slot]].push_back(slot);
    }
    std::copy(image.x, image.x + image.prefix * image.width, out.rows);
    if (out.size != nullptr) std::fill(out.size, out.size + image.prefix, 1.0f);
    if (out.bias != nullptr) std::fill(out.bias, out.bias + image.prefix, 0.0f);
    for (int64_t k = 0; k < out.count; ++k) {
        const bool real = k < static_cast<int64_t>(merging.kept.size());
        const int64_t slot = real ? merging.kept[k] : 0, number = image.number(slot);
        const float whole = merging.into[slot] == slot ? size[slot] : image.size_of(slot);
        if (out.index != nullptr) out.index[k] = slot;
        if (out.keep != nullptr) out.keep[k] = real;
        if (out.patch != nullptr) out.patch[k] = number;
        if (out.kept != nullptr) out.kept[k] = real ? number : -1;
        if (out.size != nullptr) out.size[image.prefix + k] = whole;
        if (out.bias != nullptr) out.bias[image.prefix + k] = merged_bias(parameters.proportional, whole, real);
        float* row = out.rows + (image.prefix + k) * image.width;
        if (members[slot].empty()) {
            std::copy(image.row(slot), image.row(slot) + image.width, row);
        } else {
            mean_row(image, merging, mean, slot, members[slot], row);
        }
    }
    if (out.group != nullptr) write_group(image, merging, parameters.loses, out.group);
}

}  // namespace vitprune
