// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "host/dispatch.h"
#include "host/merging.h"

namespace vitprune {
namespace {

VP_WIDE void likenesses(const float* product, float own, const float* length, const float* hidden, int64_t count, float* out) {
    for (int64_t b = 0; b < count; ++b) out[b] = likeness(product[b], own, length[b], hidden[b]);
}

// Best partner of every member of A, and how similar it is; pads have none of either.
struct Partners {
    std::vector<int64_t> partner;
    std::vector<float> alike;
};

Partners partners(const MergeImage& image, const float* products, const std::vector<float>& length, int64_t first_a,
                  int64_t members_a, int64_t first_b, int64_t members_b) {
    Partners found{std::vector<int64_t>(members_a), std::vector<float>(members_a)};
    std::vector<float> row(members_b), length_b(members_b), hidden_b(members_b);
    for (int64_t b = 0; b < members_b; ++b) {
        length_b[b] = length[first_b + 2 * b];
        hidden_b[b] = hidden(image.live(first_b + 2 * b));
    }
    for (int64_t a = 0; a < members_a; ++a) {
        likenesses(products + a * members_b, length[first_a + 2 * a], length_b.data(), hidden_b.data(), members_b, row.data());
        const auto best = std::max_element(row.begin(), row.end());
        found.partner[a] = best - row.begin();
        found.alike[a] = add(*best, hidden(image.live(first_a + 2 * a)));
    }
    return found;
}

}  // namespace

Merging pair_merging(const MergeParameters& parameters, const MergeImage& image, const float* products, const float* metric,
                     int64_t depth) {
    const PairParameters& pair = parameters.pair;
    const int64_t first_a = first_of_a(parameters.prefix), first_b = first_of_b(parameters.prefix);
    const int64_t members_a = members_of(first_a, image.patches), members_b = members_of(first_b, image.patches);
    std::vector<float> length(image.patches);
    norms_of(metric, image.patches, depth, parameters.floor, length.data());
    const Partners found = partners(image, products, length, first_a, members_a, first_b, members_b);
    Merging merging{std::vector<int64_t>(image.patches), {}, {}};
    std::iota(merging.into.begin(), merging.into.end(), 0);
    std::vector<int64_t> order(members_a);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ranked(found.alike[a]) > ranked(found.alike[b]); });
    order.resize(std::min(pair.pairs, members_a));
    int64_t live = 0;
    for (int64_t slot = 0; slot < image.patches; ++slot) live += image.live(slot);
    for (size_t place = 0; place < order.size(); ++place) {
        const bool above = found.alike[order[place]] > pair.threshold;
        const bool forced = parameters.most > 0 && static_cast<int64_t>(place) < live - parameters.most;
        if (pair.by_threshold && !above && !forced) continue;
        merging.into[first_a + 2 * order[place]] = first_b + 2 * found.partner[order[place]];
    }
    const auto stays = [&](int64_t slot) { return merging.into[slot] == slot && image.live(slot); };
    if (pair.by_threshold) {
        for (int64_t slot = 0; slot < image.patches; ++slot) {
            if (stays(slot)) merging.kept.push_back(slot);
        }
        return merging;
    }
    for (int64_t slot = first_a; slot < image.patches; slot += 2) {
        if (stays(slot)) merging.kept.push_back(slot);
    }
    for (int64_t slot = first_b; slot < image.patches; slot += 2) merging.kept.push_back(slot);
    return merging;
}

}  // namespace vitprune
