// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "host/dispatch.h"
#include "host/merging.h"

namespace vitprune {
namespace {

constexpr float kNone = kNoDamage;

VP_WIDE void weigh(const WardParameters& parameters, const float* size, const float* received, int64_t count, float* mass) {
    for (int64_t n = 0; n < count; ++n) mass[n] = ward_mass(parameters, size[n], received[n]);
}

// Sizes times the importance (attention per patch, 1 = average) to the power.
std::vector<float> masses(const WardParameters& parameters, const MergeImage& image, const Attention& attention) {
    std::vector<float> size(image.patches), received(image.patches), mass(image.patches);
    for (int64_t slot = 0; slot < image.patches; ++slot) size[slot] = image.size_of(slot);
    if (parameters.power == 0.0f) return size;
    for (int64_t slot = 0; slot < image.patches; ++slot) {
        for (int64_t head = 0; head < attention.heads; ++head) received[slot] = add(received[slot], attention.values[slot * attention.heads + head]);
    }
    weigh(parameters, size.data(), received.data(), image.patches, mass.data());
    return mass;
}

// The least of some values, in lanes: a plain minimum is not vectorised without -ffast-math.
inline float least_of(const float* values, size_t count) {
    constexpr size_t kLanes = 16;
    float lanes[kLanes];
    std::fill(lanes, lanes + kLanes, kNone);
    size_t at = 0;
    for (; at + kLanes <= count; at += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = values[at + lane] < lanes[lane] ? values[at + lane] : lanes[lane];
    }
    for (; at < count; ++at) lanes[0] = std::min(lanes[0], values[at]);
    return *std::min_element(lanes, lanes + kLanes);
}

// Damages of one slot with all others, and the least of them. own, length: squared lengths; inverse: of the masses.
VP_WIDE float damages(const float* product, float own, float own_inverse, const float* length, const float* inverse, int64_t slot,
                      int64_t count, float* damage) {
    for (int64_t j = 0; j < count; ++j) damage[j] = ward_damage(product[j], own, length[j], own_inverse, inverse[j]);
    damage[slot] = kNone;
    return least_of(damage, static_cast<size_t>(count));
}

// Where a value that is there first is; by stretches, so that most of the search is vector code.
VP_WIDE int64_t first_of(const float* values, int64_t count, float wanted) {
    constexpr int64_t kStretch = 64;
    int64_t from = 0;
    for (; from + kStretch <= count; from += kStretch) {
        int32_t here = 0;
        for (int64_t n = 0; n < kStretch; ++n) here |= values[from + n] == wanted;
        if (here != 0) break;
    }
    return std::find(values + from, values + count, wanted) - values;
}

VP_WIDE void scaled(const float* row, float own, const float* factor, int64_t count, float* out) {
    for (int64_t j = 0; j < count; ++j) out[j] = row[j] * own * factor[j];
}

VP_WIDE void move(float* own, const float* other, float share, int64_t count) {
    for (int64_t j = 0; j < count; ++j) own[j] = moved(own[j], other[j], share);
}

// Factors that make directions of rows.
std::vector<float> inverse_lengths(const MergeImage& image) {
    std::vector<float> factor(image.patches);
    norms_of(image.row(0), image.patches, image.width, kShortest, factor.data());
    for (float& one : factor) one = 1.0f / one;
    return factor;
}

struct Nearest {
    std::vector<int64_t> partner;  // -1: none
    std::vector<float> cost;
};

// Cheapest partner of every slot present, ties to the lower one. row(slot): its products with all slots; own: with itself.
template <typename Row, typename Own>
Nearest nearest(const Row& row, const Own& own, const std::vector<float>& mass, const std::vector<uint8_t>& gone) {
    const int64_t count = static_cast<int64_t>(mass.size());
    Nearest found{std::vector<int64_t>(count, -1), std::vector<float>(count, kNone)};
    std::vector<float> length(count), inverse(count), damage(count);
    for (int64_t slot = 0; slot < count; ++slot) {
        length[slot] = gone[slot] ? kNone : own(slot);
        inverse[slot] = 1.0f / mass[slot];
    }
    for (int64_t slot = 0; slot < count; ++slot) {
        if (gone[slot]) continue;
        const float least = damages(row(slot), length[slot], inverse[slot], length.data(), inverse.data(), slot, count, damage.data());
        if (least == kNone) continue;
        found.cost[slot] = least;
        found.partner[slot] = first_of(damage.data(), count, least);
    }
    return found;
}

// Slots that join their partner: the higher ones of reciprocal pairs that are cheap enough, or the cheapest `left` of them.
std::vector<int64_t> joining(const WardParameters& parameters, const Nearest& found, int64_t left) {
    std::vector<int64_t> slots;
    for (int64_t slot = 0; slot < static_cast<int64_t>(found.partner.size()); ++slot) {
        const int64_t other = found.partner[slot];
        if (other < 0 || slot < other || found.partner[other] != slot) continue;
        if (parameters.pairs < 0 && !(found.cost[slot] < parameters.limit)) continue;
        slots.push_back(slot);
    }
    if (parameters.pairs >= 0 && static_cast<int64_t>(slots.size()) > left) {
        std::stable_sort(slots.begin(), slots.end(), [&](int64_t a, int64_t b) { return found.cost[a] < found.cost[b]; });
        slots.resize(left);
        std::sort(slots.begin(), slots.end());
    }
    return slots;
}

// Products of the centroids: rows first, then columns. Nobody reads the rows of those who are gone any more.
void move_to_centroids(float* gram, const std::vector<uint8_t>& gone, const std::vector<int64_t>& slots,
                       const std::vector<int64_t>& partner, const std::vector<float>& share) {
    const int64_t count = static_cast<int64_t>(gone.size());
    for (size_t n = 0; n < slots.size(); ++n) {
        move(&gram[partner[slots[n]] * count], &gram[slots[n] * count], share[n], count);
    }
    for (int64_t row = 0; row < count; ++row) {
        if (gone[row]) continue;
        float* products = &gram[row * count];
        for (size_t n = 0; n < slots.size(); ++n) {
            float& own = products[partner[slots[n]]];
            own = moved(own, products[slots[n]], share[n]);
        }
    }
}

}  // namespace

Merging ward_merging(const MergeParameters& merge, const MergeImage& image, const float* gram, const Attention& attention) {
    const WardParameters& parameters = merge.ward;
    const int64_t count = image.patches;
    Merging merging{std::vector<int64_t>(count), masses(parameters, image, attention), {}};
    std::iota(merging.into.begin(), merging.into.end(), 0);
    const std::vector<float> factor = inverse_lengths(image);
    static thread_local std::vector<float> kept_memory;  // grows to the largest image that its thread has seen
    kept_memory.resize(std::max<size_t>(kept_memory.size(), count * count));
    float* products = kept_memory.data();
    std::vector<float> mass = merging.mass;
    std::vector<uint8_t> gone(count);
    for (int64_t slot = 0; slot < count; ++slot) gone[slot] = !image.live(slot);
    int64_t left = parameters.pairs;
    for (int64_t round = 0; round < parameters.rounds; ++round) {
        const auto row = [&](int64_t slot) {  // in the first round, of directions from here on: made just before it is read
            float* own = &products[slot * count];
            if (round == 0) scaled(gram + slot * count, factor[slot], factor.data(), count, own);
            return own;
        };
        const auto own = [&](int64_t slot) {
            const int64_t at = slot * count + slot;
            return round == 0 ? gram[at] * factor[slot] * factor[slot] : products[at];
        };
        const Nearest found = nearest(row, own, mass, gone);
        const std::vector<int64_t> slots = joining(parameters, found, left);
        if (slots.empty()) break;
        left -= static_cast<int64_t>(slots.size());
        std::vector<float> share;
        for (const int64_t slot : slots) {
            const int64_t other = found.partner[slot];
            share.push_back(mass[slot] / (mass[other] + mass[slot]));
            mass[other] += mass[slot];
            gone[slot] = 1;
        }
        for (int64_t& end : merging.into) {
            if (std::binary_search(slots.begin(), slots.end(), end)) end = found.partner[end];
        }
        if (round + 1 < parameters.rounds) move_to_centroids(products, gone, slots, found.partner, share);
    }
    for (int64_t slot = 0; slot < count; ++slot) {
        if (image.live(slot) && merging.into[slot] == slot) merging.kept.push_back(slot);
    }
    if (merge.most > 0) keep_heaviest(merging.kept, mass, merge.most);
    return merging;
}

}  // namespace vitprune
