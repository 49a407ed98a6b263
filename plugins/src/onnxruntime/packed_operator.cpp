// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/packed_operator.h"

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

}  // namespace

void add_packed_operator(const OrtApi& api, OrtCustomOpDomain* domain) { add_operator<PackedKernel>(api, domain); }

}  // namespace vitprune
