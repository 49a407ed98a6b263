// SPDX-License-Identifier: Apache-2.0
#include "host/merge_decision.h"

#include <algorithm>

#include "host/prune_site.h"
#include "host/sampled_merge.h"

namespace vitprune {
namespace {

template <typename Value>
Value* of_image(Value* all, int64_t b, int64_t size) {
    return all == nullptr ? nullptr : all + b * size;
}

MergeImage image_of(const MergeInputs& in, const MergeShape& shape, int64_t b) {
    const int64_t tokens = shape.tokens(), patches = shape.patches;
    return {in.x + b * tokens * shape.width,
            in.size == nullptr ? nullptr : in.size + b * tokens + shape.prefix,
            of_image(in.patch, b, patches),
            of_image(in.valid, b, patches),
            of_image(in.group, b, shape.originals),
            shape.prefix,
            patches,
            shape.width,
            in.group == nullptr ? patches : shape.originals};
}

// What the slots of image b receive: `given` [B,P] of scores where the first token's row is computed here.
Attention attention_of(const MergeInputs& in, const MergeShape& shape, const float* given, int64_t b) {
    if (given != nullptr) return {given + b * shape.patches, 1};
    if (in.attention == nullptr) return {};
    if (shape.heads == 0) return {in.attention + b * shape.patches, 1};
    return {in.attention + (b * shape.tokens() + shape.prefix) * shape.heads, shape.heads};
}

// What the first token gives the patches, summed over the heads [B,P]; empty without a query.
std::vector<float> asked(const MergeInputs& in, const MergeShape& shape, const ForEach& each) {
    if (in.query == nullptr) return {};
    SiteParameters sum;
    sum.form = SiteForm::kSum;
    std::vector<float> received(static_cast<size_t>(shape.batch) * shape.patches);
    site_score(sum, scoring_inputs(in, shape, MergeKind::kWard), scoring_shape(shape), received.data(), each);
    return received;
}

void decide_pairs(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, MergeDecision& decided,
                  const ForEach& each) {
    const int64_t members_a = members_of(first_of_a(shape.prefix), shape.patches), products = members_a * (shape.patches - members_a);
    each(shape.batch, [&](size_t b) {
        const float* metric = in.metric + (b * shape.tokens() + shape.prefix) * shape.depth;
        decided.images[b] = pair_merging(parameters, image_of(in, shape, b), in.products + b * products, metric, shape.depth);
    });
}

void decide_wards(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, MergeDecision& decided,
                  const ForEach& each) {
    const bool needed = parameters.ward.power != 0.0f;
    const std::vector<float> received = needed ? asked(in, shape, each) : std::vector<float>{};
    const int64_t products = static_cast<int64_t>(shape.patches) * shape.patches;
    each(shape.batch, [&](size_t b) {
        const Attention attention = attention_of(in, shape, received.empty() ? nullptr : received.data(), b);
        decided.images[b] = ward_merging(parameters, image_of(in, shape, b), in.gram + b * products, attention);
    });
}

void decide_sampled(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, MergeDecision& decided,
                    const ForEach& each) {
    SiteDecision sampled = decide_site(parameters.site, scoring_inputs(in, shape, parameters.kind), scoring_shape(shape), each);
    const int64_t row = static_cast<int64_t>(shape.heads) * shape.depth;
    each(shape.batch, [&](size_t b) {
        const float* metric = in.metric + (b * shape.tokens() + shape.prefix) * row;
        decided.images[b] = sampled_merging(image_of(in, shape, b), sampled.selection.rows[b], metric, shape.heads, shape.depth,
                                            parameters.floor);
    });
    const bool given = parameters.site.form == SiteForm::kGiven;
    decided.own = std::move(sampled.own);
    decided.score = given ? in.score : decided.own.data();
}

}  // namespace

MergeDecision decide_merge(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, const ForEach& each) {
    MergeDecision decided;
    decided.images.resize(shape.batch);
    switch (parameters.kind) {
        case MergeKind::kPair: decide_pairs(parameters, in, shape, decided, each); break;
        case MergeKind::kWard: decide_wards(parameters, in, shape, decided, each); break;
        case MergeKind::kSampled: decide_sampled(parameters, in, shape, decided, each); break;
    }
    int64_t largest = 1;
    for (const Merging& one : decided.images) largest = std::max(largest, static_cast<int64_t>(one.kept.size()));
    decided.count = parameters.padded ? parameters.most : largest;
    decided.fits = largest <= decided.count;
    return decided;
}

void write_merge(const MergeParameters& parameters, const MergeInputs& in, const MergeShape& shape, const MergeDecision& decided,
                 const MergeOutputs& out, const ForEach& each) {
    const int64_t tokens = shape.prefix + out.count;
    const Mean mean = parameters.kind == MergeKind::kWard ? Mean::kKeptNorm : Mean::kSizes;
    each(shape.batch, [&](size_t b) {
        const MergeOutputs own{of_image(out.rows, b, tokens * shape.width), of_image(out.size, b, tokens), of_image(out.bias, b, tokens),
                               of_image(out.index, b, out.count), of_image(out.keep, b, out.count),
                               of_image(out.group, b, shape.originals), of_image(out.patch, b, out.count),
                               of_image(out.kept, b, out.count), nullptr, out.count};
        write_merged(image_of(in, shape, b), decided.images[b], mean, parameters, own);
    });
    if (out.score == nullptr || decided.score == nullptr) return;
    std::copy_n(decided.score, static_cast<size_t>(shape.batch) * shape.patches, out.score);
}

}  // namespace vitprune
