// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/packed_operator.h"

#include <cmath>
#include <vector>

#include "host/packed_attention.h"
#include "onnxruntime/cpu_operator.h"
#include "onnxruntime/pool.h"

namespace vitprune {
namespace {

constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kInt64, kInt64, kFloat};
constexpr ONNXTensorElementDataType kOutputs[] = {kFloat};
constexpr size_t kBias = 5;

class PackedKernel {
public:
    static constexpr const char* kName = "PackedAttention";
    static constexpr Signature kReads = signature(kInputs, kBias), kWrites = signature(kOutputs);

    PackedKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), heads_(integer_of(api, info, "num_heads")), scale_(number_of(api, info, "scale")) {
        if (check_packed(1, heads_, 1, scale_) != VP_OK) {
            fail(api, ORT_INVALID_ARGUMENT, "num_heads and scale must be positive");
        }
    }

    void compute(OrtKernelContext* context) const {
        TensorView in[kBias];
        for (size_t index = 0; index < kBias; ++index) in[index] = input_tensor(api_, context, index);
        const auto& [query, key, value, query_ends, key_ends] = in;
        const bool flat =
            query.dims.size() == 2 && key.dims.size() == 2 && value.dims == key.dims && query.dims[1] == key.dims[1];
        if (!flat || query.dims[1] % heads_ != 0) {
            fail(api_, ORT_INVALID_ARGUMENT, "query, key and value must be rows of one width that the heads divide");
        }
        if (query_ends.dims.size() != 1 || query_ends.dims[0] < 1 || key_ends.dims != query_ends.dims) {
            fail(api_, ORT_INVALID_ARGUMENT, "query_ends and key_ends must both be [images + 1]");
        }
        const int64_t images = query_ends.dims[0] - 1;
        const PackedAttention all{
            static_cast<const float*>(query.data), static_cast<const float*>(key.data), static_cast<const float*>(value.data),
            Inputs(api_, context).take<float>(kBias, {key.dims[0]}, "bias"), static_cast<const int64_t*>(query_ends.data),
            static_cast<const int64_t*>(key_ends.data), images, heads_, query.dims[1] / heads_, scale_,
            give<float>(api_, context, 0, query.dims)};
        if (!valid_ends(all.query_ends, images, query.dims[0]) || !valid_ends(all.key_ends, images, key.dims[0])) {
            fail(api_, ORT_INVALID_ARGUMENT, "query_ends and key_ends must rise from 0 to the number of rows");
        }
        pool_of(context)(static_cast<size_t>(images * heads_), [&all](size_t unit) {
            attend_packed(all, static_cast<int64_t>(unit));
        });
    }

private:
    const OrtApi& api_;
    int64_t heads_;
    float scale_;
};

constexpr ONNXTensorElementDataType kBatchInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt32};
enum BatchInput { kBatchBias = 3, kBatchMask = 4 };
constexpr float kHiddenBias = -5000.0f;  // at most: no logits of a trained model lie that far apart, so such a key gets no weight

// Attention of a batch with one value for every key, which ONNX Runtime's own wants for every query: bias, added to the logits, or mask,
// 0 where the key is not there. An image's keys end with the last one that is there.
class BatchKernel {
public:
    static constexpr const char* kName = "KeyBiasAttention";
    static constexpr Signature kReads = signature(kBatchInputs, kBatchBias), kWrites = signature(kOutputs);

    BatchKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), heads_(integer_of(api, info, "num_heads")), scale_(number_of(api, info, "scale")) {
        if (check_packed(1, heads_, 1, scale_) != VP_OK) {
            fail(api, ORT_INVALID_ARGUMENT, "num_heads and scale must be positive");
        }
    }

    void compute(OrtKernelContext* context) const {
        const TensorView query = input_tensor(api_, context, 0), key = input_tensor(api_, context, 1);
        const bool batched = query.dims.size() == 3 && key.dims.size() == 3 && query.dims[0] == key.dims[0] && query.dims[2] == key.dims[2];
        if (!batched || query.dims[2] % heads_ != 0) {
            fail(api_, ORT_INVALID_ARGUMENT, "query and key must be [batch, tokens, width], of one width that the heads divide");
        }
        const int64_t images = query.dims[0], keys = key.dims[1], width = query.dims[2];
        const Inputs in(api_, context);
        const float* values = in.take<float>(2, key.dims, "value");
        const float* bias = in.take<float>(kBatchBias, {images, keys}, "bias");
        const int32_t* mask = in.take<int32_t>(kBatchMask, {images, keys}, "mask");
        std::vector<float> hidden;
        if (mask != nullptr) {
            hidden.resize(images * keys);
            for (size_t n = 0; n < hidden.size(); ++n) hidden[n] = mask[n] == 0 ? -INFINITY : bias == nullptr ? 0.0f : bias[n];
            bias = hidden.data();
        }
        float* output = give<float>(api_, context, 0, query.dims);
        pool_of(context)(static_cast<size_t>(images * heads_), [&](size_t unit) {
            const int64_t b = static_cast<int64_t>(unit) / heads_, head = static_cast<int64_t>(unit) % heads_;
            const float* own = bias == nullptr ? nullptr : bias + b * keys;
            const int64_t queries[] = {0, query.dims[1]}, seen[] = {0, last_seen(own, keys)};
            const int64_t asked = b * query.dims[1] * width, told = b * keys * width;
            const PackedAttention all{static_cast<const float*>(query.data) + asked, static_cast<const float*>(key.data) + told,
                                      values + told, own, queries, seen, 1, heads_, width / heads_, scale_, output + asked};
            attend_packed(all, head);
        });
    }

private:
    static int64_t last_seen(const float* bias, int64_t keys) {
        if (bias == nullptr) return keys;
        int64_t seen = keys;
        while (seen > 0 && bias[seen - 1] <= kHiddenBias) --seen;
        return seen;
    }

    const OrtApi& api_;
    int64_t heads_;
    float scale_;
};

}  // namespace

void add_packed_operator(const OrtApi& api, OrtCustomOpDomain* domain) {
    add_operator<PackedKernel>(api, domain);
    add_operator<BatchKernel>(api, domain);
}

}  // namespace vitprune
