// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/merge_tensors.h"

#include <algorithm>

#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

using Dims = std::vector<int64_t>;

constexpr size_t kNowhere = ~size_t{0};

// Where the inputs of a kind stand.
struct Places {
    size_t products, metric, gram, attention, query, key, value, score, size, patch, valid, group, bias;
};

constexpr Places kPlaces[] = {
    {1, 2, kNowhere, kNowhere, kNowhere, kNowhere, kNowhere, kNowhere, 3, 4, 5, 6, kNowhere},
    {kNowhere, kNowhere, 1, 2, 7, 8, kNowhere, kNowhere, 3, 4, 5, 6, 9},
    {kNowhere, 1, kNowhere, kNowhere, 2, 3, 4, 5, 6, 7, 8, 9, 10},
};
enum Output { kRows, kSize, kBias, kIndex, kKeep, kGroup, kPatch, kKept, kShape, kScore };

void insist(const OrtApi& api, bool sane, const char* message) {
    if (!sane) fail(api, ORT_INVALID_ARGUMENT, message);
}

// The inputs of a node, each asked for once.
class Views {
public:
    Views(const OrtApi& api, OrtKernelContext* context) : api_(api) {
        const Inputs reader(api, context);
        for (size_t n = 0; n < all_.size(); ++n) {
            if (reader.has(n)) all_[n] = input_tensor(api, context, n);
        }
    }

    bool has(size_t index) const { return index < all_.size() && all_[index].type != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }

    const Dims& dims(size_t index) const { return has(index) ? all_[index].dims : none_; }

    template <typename Value, size_t kRank>
    const Value* take(size_t index, const int64_t (&shape)[kRank], const char* what) const {
        if (!has(index)) return nullptr;
        const Dims& found = all_[index].dims;
        if (!std::equal(found.begin(), found.end(), shape, shape + kRank)) fail(api_, ORT_INVALID_ARGUMENT, std::string(what) + " has a wrong shape");
        return static_cast<const Value*>(all_[index].data);
    }

private:
    const OrtApi& api_;
    std::array<TensorView, 11> all_{};
    Dims none_;
};

// Sizes of a node's inputs, as far as they are needed to take them.
VpMergeSizes sizes_of(const OrtApi& api, const Views& reader, const MergeNode& node, const Places& at) {
    const MergeParameters& parameters = node.parameters;
    const Dims& x = reader.dims(0);
    insist(api, x.size() == 3 && x[1] > parameters.prefix, "x must be [batch, tokens, width]");
    VpMergeSizes sizes{x[0], x[1] - parameters.prefix, x[2], 0, 0, 0};
    const Dims& grouped = reader.dims(at.group);
    if (reader.has(at.group)) {
        insist(api, grouped.size() == 2 && grouped[0] == x[0], "group must be [batch, patches]");
        sizes.originals = grouped[1];
        const bool enough = reader.has(at.patch) || sizes.originals >= sizes.patches;
        insist(api, enough, "group has fewer patches than there are slots");
    }
    const Dims &metric = reader.dims(at.metric), &query = reader.dims(at.query), &attention = reader.dims(at.attention);
    if (parameters.kind == MergeKind::kPair) {
        insist(api, metric.size() == 3, "metric must be [batch, tokens, depth]");
        sizes.depth = metric[2];
    } else if (parameters.kind == MergeKind::kSampled) {
        sizes.heads = parameters.site.heads;
        insist(api, metric.size() == 3 && metric[2] % sizes.heads == 0, "metric must be [batch, tokens, heads * depth]");
        sizes.depth = metric[2] / sizes.heads;
    } else if (reader.has(at.query)) {
        sizes.heads = node.heads;
        const bool sane = node.heads > 0 && parameters.prefix > 0 && query.size() == 3 && query[0] == x[0] && query[1] == x[1] &&
                          query[2] % node.heads == 0;
        insist(api, sane, "query must be [batch, tokens, heads * depth], with a prefix");
        sizes.depth = query[2] / node.heads;
    } else if (attention.size() == 3) {
        sizes.heads = attention[2];
        insist(api, sizes.heads > 0, "attention must be [batch, tokens, heads] or [batch, patches]");
    }
    return sizes;
}

}  // namespace

MergeNode::MergeNode(const OrtApi& api, const OrtKernelInfo* info, MergeKind kind) {
    VpMergeAttributes given{};
    SiteParameters site;
    given.kind = merge_kind_name(kind);
    given.prefix_tokens = integer_of(api, info, "prefix");
    given.most = integer_of(api, info, "most");
    given.padded = integer_of(api, info, "padded") != 0;
    given.loses = integer_of(api, info, "loses") != 0;
    given.proportional = integer_of(api, info, "proportional") != 0;
    if (kind != MergeKind::kWard) given.floor = number_of(api, info, "floor");
    if (kind != MergeKind::kSampled) given.pairs = integer_of(api, info, "pairs");
    if (kind == MergeKind::kPair) {
        given.by_threshold = integer_of(api, info, "by_threshold") != 0;
        given.threshold = number_of(api, info, "threshold");
    } else if (kind == MergeKind::kWard) {
        given.limit = number_of(api, info, "limit");
        given.rounds = integer_of(api, info, "rounds");
        given.power = number_of(api, info, "power");
        given.everyone = number_of(api, info, "everyone");
        given.share = number_of(api, info, "share");
        heads = integer_of(api, info, "heads");
    } else {
        site = read_site(api, info);
        const SampleParameters& sample = site.sample;
        given.site = {{mode_name(sample.mode), sample.samples, sample.threshold, sample.capacity, sample.expected, sample.padded},
                      site_form_name(site.form), combine_name(site.combine), site.heads, site.prefix, site.originals};
    }
    insist(api, given.prefix_tokens >= 0 && given.most >= 0 && heads >= 0, "an attribute is negative");
    check_own(api, check_merge(&given, parameters));
}

MergeTensors::MergeTensors(const OrtApi& api, OrtKernelContext* context, const MergeNode& node) {
    const Views reader(api, context);
    const MergeKind kind = node.parameters.kind;
    const Places& at = kPlaces[static_cast<int32_t>(kind)];
    const VpMergeSizes sizes = sizes_of(api, reader, node, at);
    check_own(api, check_merge_shape(node.parameters, sizes, shape));
    const int64_t batch = shape.batch, patches = shape.patches, tokens = shape.tokens(), row = static_cast<int64_t>(shape.heads) * shape.depth;
    const int64_t members_a = members_of(first_of_a(shape.prefix), shape.patches);
    const int64_t images[]{batch, patches}, rows[]{batch, tokens}, wide[]{batch, tokens, kind == MergeKind::kPair ? shape.depth : row};
    in.x = reader.take<float>(0, {batch, tokens, shape.width}, "x");
    in.products = reader.take<float>(at.products, {batch, members_a, patches - members_a}, "products");
    in.metric = reader.take<float>(at.metric, wide, "metric");
    in.gram = reader.take<float>(at.gram, {batch, patches, patches}, "gram");
    const bool asks = reader.has(at.query), once = kind == MergeKind::kSampled && reader.dims(at.query).size() != 3;
    const int64_t asking[]{batch, kind == MergeKind::kWard ? tokens : 1, row};
    in.query = once ? reader.take<float>(at.query, {batch, row}, "query") : reader.take<float>(at.query, asking, "query");
    if (kind == MergeKind::kWard && asks) insist(api, reader.has(at.key), "a query needs keys");
    if (kind != MergeKind::kWard || asks) {  // without a query nobody reads them
        in.key = reader.take<float>(at.key, wide, "key");
        in.bias = reader.take<float>(at.bias, rows, "bias");
    }
    if (!asks && shape.heads > 0) in.attention = reader.take<float>(at.attention, {batch, tokens, shape.heads}, "attention");
    if (!asks && shape.heads == 0) in.attention = reader.take<float>(at.attention, images, "attention");
    in.value = reader.take<float>(at.value, wide, "value");
    in.score = reader.take<float>(at.score, images, "score");
    in.size = reader.take<float>(at.size, rows, "size");
    in.patch = reader.take<int64_t>(at.patch, images, "patch");
    in.valid = reader.take<uint8_t>(at.valid, images, "valid");
    in.group = reader.take<int64_t>(at.group, {batch, shape.originals}, "group");
    const bool importance = kind != MergeKind::kWard || node.parameters.ward.power == 0.0f || asks || in.attention != nullptr;
    insist(api, importance, "a power of the importance needs attention");
    check_own(api, check_merge_inputs(node.parameters, shape, in));
}

void check_numbers(const OrtApi& api, const MergeTensors& tensors) {
    const MergeInputs& in = tensors.in;
    const int64_t batch = tensors.shape.batch, patches = tensors.shape.patches, originals = tensors.shape.originals;
    if (in.group == nullptr) return;
    for (int64_t n = 0; in.patch != nullptr && n < batch * patches; ++n) {
        insist(api, in.patch[n] >= 0 && in.patch[n] < originals, "patch holds a number that is no patch");
    }
    for (int64_t n = 0; n < batch * originals; ++n) {
        insist(api, in.group[n] >= -1 && in.group[n] < originals, "group holds a number that is no patch");
    }
}

MergeResults merge_results(const OrtApi& api, OrtKernelContext* context, MergeKind kind, const MergeTensors& tensors, int64_t count) {
    const int64_t batch = tensors.shape.batch, tokens = tensors.shape.prefix + count;
    MergeResults results;
    MergeOutputs& out = results.out;
    results.dims = {batch, tokens, tensors.shape.width};
    out.count = count;
    out.rows = give<float>(api, context, kRows, {batch, tokens, tensors.shape.width});
    out.size = give<float>(api, context, kSize, {batch, tokens});
    out.bias = give<float>(api, context, kBias, {batch, tokens});
    out.index = give<int64_t>(api, context, kIndex, {batch, count});
    out.keep = give<uint8_t>(api, context, kKeep, {batch, count});
    if (tensors.in.group != nullptr) out.group = give<int64_t>(api, context, kGroup, {batch, tensors.shape.originals});
    if (kind != MergeKind::kSampled) return results;
    out.patch = give<int64_t>(api, context, kPatch, {batch, count});
    out.kept = give<int64_t>(api, context, kKept, {batch, count});
    results.shape = give<int64_t>(api, context, kShape, {3});
    out.score = give<float>(api, context, kScore, {batch, tensors.shape.patches});
    return results;
}

}  // namespace vitprune
