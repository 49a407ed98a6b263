// SPDX-License-Identifier: Apache-2.0
#include "host/prune_site.h"

#include <algorithm>
#include <cstring>

#include "host/typed_rows.h"

namespace vitprune {
namespace {

constexpr int64_t kRowsAtOnce = 64;

// Values from one place to another of the same type.
void copy_values(const Typed& source, int64_t from, void* target, int64_t to, int64_t count) {
    const int64_t bytes = element_bytes(source.dtype);
    std::memcpy(static_cast<char*>(target) + to * bytes, static_cast<const char*>(source.data) + from * bytes, count * bytes);
}

// One row for all that leave: what they add up to, weighted by score or all alike.
//   first: where the image's patches begin in x; to: where the row begins in out, which has x's type
void combine(const SiteParameters& parameters, const Typed& x, int64_t first, const float* score, const uint8_t* valid,
             const SiteShape& shape, const std::vector<int32_t>& kept, void* out, int64_t to) {
    std::vector<float> sum(shape.width, 0.0f), room;
    std::vector<uint8_t> stays(shape.patches, 0);
    for (const int32_t j : kept) stays[j] = 1;
    int64_t leaving = 0;
    for (int32_t j = 0; j < shape.patches; ++j) leaving += !stays[j] && (valid == nullptr || valid[j]);
    const float share = divide(1.0f, static_cast<float>(std::max<int64_t>(leaving, 1)));
    for (int32_t j = 0; j < shape.patches; ++j) {
        if (stays[j] || (valid != nullptr && !valid[j])) continue;
        const float weight = parameters.combine == Combine::kWeighted ? score[j] : share;
        const float* row = as_floats(x, first + static_cast<int64_t>(j) * shape.width, shape.width, room);
        for (int64_t c = 0; c < shape.width; ++c) sum[c] = add(sum[c], mul(weight, row[c]));
    }
    round_to(x.dtype, sum.data(), shape.width, static_cast<char*>(out) + to * element_bytes(x.dtype));
}

// Everything of one image but its rows.
void write_slots(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const float* score,
                 const std::vector<int32_t>& kept, int64_t b, const SiteOutputs& out) {
    const int64_t more = parameters.combine != Combine::kNothing, count = out.count, real = kept.size();
    const int64_t* numbers = in.patch == nullptr ? nullptr : in.patch + b * shape.patches;
    int32_t* mask = out.mask == nullptr ? nullptr : out.mask + b * (shape.prefix + count + more);
    if (mask != nullptr) std::fill(mask, mask + shape.prefix, 1);
    if (mask != nullptr && more) mask[shape.prefix + count] = 1;
    float* bias = out.bias == nullptr ? nullptr : out.bias + b * (shape.prefix + count + more);
    if (bias != nullptr) std::fill(bias, bias + shape.prefix + count + more, 0.0f);
    for (int64_t slot = 0; slot < count; ++slot) {
        const bool here = slot < real;
        const int64_t j = here ? kept[slot] : 0;
        const int64_t number = numbers == nullptr ? j : numbers[j];
        if (out.index != nullptr) out.index[b * count + slot] = j;
        if (out.keep != nullptr) out.keep[b * count + slot] = here;
        if (out.patch != nullptr) out.patch[b * (count + more) + slot] = number;
        if (out.kept != nullptr) out.kept[b * count + slot] = here && number < parameters.originals ? number : -1;
        if (out.score_kept != nullptr) out.score_kept[b * count + slot] = score[j];
        if (mask != nullptr) mask[shape.prefix + slot] = here;
        if (bias != nullptr && !here) bias[shape.prefix + slot] = kPadBias;
    }
    if (out.patch != nullptr && more) out.patch[b * (count + more) + count] = parameters.originals;
}

Selection select_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const float* score) {
    const int64_t size = static_cast<int64_t>(shape.batch) * shape.patches;
    std::vector<uint8_t> all;
    std::vector<float> excess;
    if (in.valid == nullptr) all.assign(size, 1);
    if (in.theta != nullptr) {
        excess.resize(size);
        for (int64_t i = 0; i < size; ++i) excess[i] = add(score[i], -*in.theta);
    }
    return select_tokens(parameters.sample, excess.empty() ? score : excess.data(), in.valid == nullptr ? all.data() : in.valid,
                         shape.batch, shape.patches);
}

}  // namespace

SiteDecision decide_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const ForEach& each) {
    SiteDecision decided{{}, in.score, {}};
    if (parameters.form != SiteForm::kGiven) {
        decided.own.resize(static_cast<size_t>(shape.batch) * shape.patches);
        site_score(parameters, in, shape, decided.own.data(), each);
        decided.score = decided.own.data();
    }
    decided.selection = select_site(parameters, in, shape, decided.score);
    return decided;
}

void write_site(const SiteParameters& parameters, const SiteInputs& in, const SiteShape& shape, const SiteDecision& decided,
                const SiteOutputs& out, float* told, const ForEach& each) {
    const float* score = decided.score;
    if (told != nullptr) std::copy(score, score + static_cast<size_t>(shape.batch) * shape.patches, told);
    const int64_t more = parameters.combine != Combine::kNothing, rows = shape.prefix + out.count, tokens = shape.tokens();
    const int64_t pieces = (rows + kRowsAtOnce - 1) / kRowsAtOnce + 1;  // the last one: what is no row of x or h
    each(shape.batch * pieces, [&](size_t piece) {
        const int64_t b = piece / pieces, part = piece % pieces;
        const std::vector<int32_t>& kept = decided.selection.rows[b];
        const int64_t from = b * tokens * shape.width, to = b * (rows + more) * shape.width;
        const float* image_score = score + b * shape.patches;
        if (part + 1 == pieces) {
            write_slots(parameters, in, shape, image_score, kept, b, out);
            const uint8_t* valid = in.valid == nullptr ? nullptr : in.valid + b * shape.patches;
            if (more) {
                const int64_t patches = from + static_cast<int64_t>(shape.prefix) * shape.width;
                combine(parameters, in.x, patches, image_score, valid, shape, kept, out.rows, to + rows * shape.width);
            }
            return;
        }
        for (int64_t r = part * kRowsAtOnce; r < std::min(rows, (part + 1) * kRowsAtOnce); ++r) {
            const int64_t slot = r - shape.prefix;
            const int64_t source = slot < 0 ? r : shape.prefix + (slot < static_cast<int64_t>(kept.size()) ? kept[slot] : 0);
            copy_values(in.x, from + source * shape.width, out.rows, to + r * shape.width, shape.width);
            if (out.rows2 != nullptr) {
                copy_values(in.h, (b * tokens + source) * shape.width2, out.rows2, (b * rows + r) * shape.width2, shape.width2);
            }
        }
    });
}

}  // namespace vitprune
