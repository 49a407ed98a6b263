// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/merge_operators.h"

#include <algorithm>

#include "host/merging.h"
#include "onnxruntime/merge_tensors.h"
#include "onnxruntime/sampled_merge_operator.h"

namespace vitprune {
namespace {

// What the first tokens of a batch ask, checked; none where the node has no query.
std::vector<Asking> asked(const MergeKernel& kernel, int64_t heads, OrtKernelContext* context,
                          const std::vector<MergeImage>& images) {
    const OrtApi& api = kernel.api;
    const Inputs in(api, context);
    const std::vector<int64_t> dims = in.dims(7);
    const float* query = in.take<float>(7, dims, "query");
    if (query == nullptr || images.empty()) return {};
    const int64_t batch = static_cast<int64_t>(images.size()), tokens = kernel.prefix + images[0].patches;
    const bool sane = heads > 0 && kernel.prefix > 0 && dims.size() == 3 && dims[0] == batch && dims[1] == tokens &&
                      dims[2] % std::max<int64_t>(heads, 1) == 0;
    if (!sane) fail(api, ORT_INVALID_ARGUMENT, "query must be [batch, tokens, heads * depth], with a prefix");
    const float* key = in.take<float>(8, dims, "key");
    if (key == nullptr) fail(api, ORT_INVALID_ARGUMENT, "a query needs keys");
    const float* bias = in.take<float>(9, {batch, tokens}, "bias");
    std::vector<Asking> found;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t first = b * tokens * dims[2];
        found.push_back({query + first, key + first, bias == nullptr ? nullptr : bias + b * tokens, tokens, dims[2], heads});
    }
    return found;
}

constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt64, kBool, kInt64, kFloat, kFloat, kFloat};
constexpr ONNXTensorElementDataType kFloats[] = {kFloat, kFloat};

class WardKernel : MergeKernel {
public:
    static constexpr const char* kName = "WardMerge";
    static constexpr Signature kReads = signature(kInputs, 2), kWrites = signature(kMergeOutputs, 5);  // attention may be absent

    WardKernel(const OrtApi& api, const OrtKernelInfo* info) : MergeKernel(api, info), heads_(integer_of(api, info, "heads")) {
        wards_.limit = number_of(api, info, "limit");
        wards_.pairs = integer_of(api, info, "pairs");
        wards_.rounds = integer_of(api, info, "rounds");
        wards_.power = number_of(api, info, "power");
        wards_.everyone = number_of(api, info, "everyone");
        wards_.share = number_of(api, info, "share");
        wards_.most = most;
        insist(wards_.rounds >= 0 && heads_ >= 0);
    }

    void compute(OrtKernelContext* context) const {
        const std::vector<MergeImage> images = images_of(*this, context, 3);
        const std::vector<Asking> asking = asked(*this, heads_, context, images);
        const TensorView gram = input_tensor(api, context, 1);
        const int64_t batch = static_cast<int64_t>(images.size()), patches = images.empty() ? 0 : images[0].patches;
        if (gram.dims != std::vector<int64_t>{batch, patches, patches}) {
            fail(api, ORT_INVALID_ARGUMENT, "gram must be [batch, patches, patches]");
        }
        const Inputs in(api, context);
        const std::vector<int64_t> dims = in.dims(2);
        const float* received = in.take<float>(2, dims, "attention");
        int64_t heads = 1, first = 0, rows = patches;
        if (received != nullptr) {  // of all tokens and heads, or of the patches
            const bool all = dims.size() == 3;
            if (all) heads = dims[2], first = prefix, rows = patches + prefix;
            const std::vector<int64_t> wanted = all ? std::vector<int64_t>{batch, rows, heads} : std::vector<int64_t>{batch, patches};
            if (dims != wanted) fail(api, ORT_INVALID_ARGUMENT, "attention must be [batch, tokens, heads] or [batch, patches]");
        } else if (wards_.power != 0.0f && asking.empty()) {
            fail(api, ORT_INVALID_ARGUMENT, "a power of the importance needs attention");
        }
        std::vector<Merging> merged;
        for (int64_t b = 0; b < batch; ++b) {
            std::vector<float> own;
            Attention attention{received == nullptr ? nullptr : received + (b * rows + first) * heads, heads};
            if (!asking.empty()) {
                own = cls_attention(asking[b]);
                attention = {own.data() + prefix, 1};
            }
            merged.push_back(
                ward_merging(wards_, images[b], static_cast<const float*>(gram.data) + b * patches * patches, attention));
        }
        if (!merged.empty()) write_batch(*this, context, images, merged, Mean::kKeptNorm);
    }

private:
    int64_t heads_;  // of the query and the keys, where there are any
    WardParameters wards_;
};

class PairKernel : MergeKernel {
public:
    static constexpr const char* kName = "PairMerge";
    static constexpr Signature kReads{kInputs, 7, 3}, kWrites = signature(kMergeOutputs, 5);

    PairKernel(const OrtApi& api, const OrtKernelInfo* info) : MergeKernel(api, info), floor_(number_of(api, info, "floor")) {
        pairs_.pairs = integer_of(api, info, "pairs");
        pairs_.by_threshold = integer_of(api, info, "by_threshold") != 0;
        pairs_.threshold = number_of(api, info, "threshold");
        pairs_.most = most;
        insist(pairs_.pairs >= 0);
    }

    void compute(OrtKernelContext* context) const {
        const std::vector<MergeImage> images = images_of(*this, context, 3);
        const TensorView products = input_tensor(api, context, 1), metric = input_tensor(api, context, 2);
        const int64_t batch = static_cast<int64_t>(images.size()), patches = images.empty() ? 0 : images[0].patches;
        const int64_t odd = prefix % 2, members_a = (patches - odd + 1) / 2, members_b = patches - members_a;
        if (products.dims != std::vector<int64_t>{batch, members_a, members_b} || members_b == 0) {
            fail(api, ORT_INVALID_ARGUMENT, "products must be [batch, even patch rows, odd patch rows]");
        }
        const int64_t tokens = prefix + patches;
        if (metric.dims.size() != 3 || metric.dims[0] != batch || metric.dims[1] != tokens) {
            fail(api, ORT_INVALID_ARGUMENT, "metric must be [batch, tokens, depth]");
        }
        const int64_t depth = metric.dims[2];
        std::vector<Merging> merged;
        for (int64_t b = 0; b < batch; ++b) {
            merged.push_back(pair_merging(pairs_, images[b], static_cast<const float*>(products.data) + b * members_a * members_b,
                                          static_cast<const float*>(metric.data) + (b * tokens + prefix) * depth, depth, floor_));
        }
        if (!merged.empty()) write_batch(*this, context, images, merged, Mean::kSizes);
    }

private:
    float floor_;  // no row of the metric counts as shorter
    PairParameters pairs_;
};

// Rows behind the prefix as sums of their channels with signs.
class SumsKernel {
public:
    static constexpr const char* kName = "SignedSums";
    static constexpr Signature kReads = signature(kFloats), kWrites{kFloats, 1, 1};

    SumsKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), prefix_(integer_of(api, info, "prefix")), sums_(integer_of(api, info, "sums")) {
        if (prefix_ < 0 || sums_ < 1) fail(api, ORT_INVALID_ARGUMENT, "an attribute is negative");
    }

    void compute(OrtKernelContext* context) const {
        const TensorView x = input_tensor(api_, context, 0), signs = input_tensor(api_, context, 1);
        if (x.dims.size() != 3 || x.dims[1] < prefix_ || signs.dims != std::vector<int64_t>{x.dims[2]}) {
            fail(api_, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width], with a sign for every channel");
        }
        const int64_t batch = x.dims[0], patches = x.dims[1] - prefix_, width = x.dims[2];
        float* out = give<float>(api_, context, 0, {batch, patches, sums_});
        for (int64_t b = 0; b < batch; ++b) {
            const float* rows = static_cast<const float*>(x.data) + (b * x.dims[1] + prefix_) * width;
            signed_sums(rows, patches, width, static_cast<const float*>(signs.data), sums_, out + b * patches * sums_);
        }
    }

private:
    const OrtApi& api_;
    int64_t prefix_, sums_;
};

}  // namespace

void add_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain) {
    add_operator<WardKernel>(api, domain);
    add_operator<PairKernel>(api, domain);
    add_operator<SumsKernel>(api, domain);
    add_sampled_merge(api, domain);
}

}  // namespace vitprune
