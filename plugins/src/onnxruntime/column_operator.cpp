// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/column_operator.h"

#include "host/column_score.h"
#include "onnxruntime/cpu_operator.h"
#include "onnxruntime/pool.h"

namespace vitprune {
namespace {

constexpr ONNXTensorElementDataType kFloats[] = {kFloat, kFloat, kFloat};

class ColumnKernel {
public:
    static constexpr const char* kName = "ColumnScore";
    static constexpr Signature kReads = signature(kFloats), kWrites{kFloats, 1, 1};

    ColumnKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), heads_(integer_of(api, info, "heads")), prefix_(integer_of(api, info, "prefix_tokens")) {
        if (heads_ < 1 || prefix_ < 0) fail(api, ORT_INVALID_ARGUMENT, "heads must be positive, prefix_tokens not negative");
    }

    void compute(OrtKernelContext* context) const {
        const Inputs in(api_, context);
        const std::vector<int64_t> dims = in.dims(0);
        if (dims.size() != 3 || dims[1] <= prefix_ || dims[2] < 1 || dims[2] % heads_ != 0) {
            fail(api_, ORT_INVALID_ARGUMENT, "query must be [batch, tokens, heads * depth]");
        }
        const ColumnAttention all{in.take<float>(0, dims, "query"), in.take<float>(1, dims, "key"), in.take<float>(2, dims, "value"),
                                  dims[0], dims[1] - prefix_, prefix_, heads_, dims[2] / heads_};
        column_score(all, give<float>(api_, context, 0, {all.batch, all.patches}), pool_of(context));
    }

private:
    const OrtApi& api_;
    int64_t heads_, prefix_;
};

}  // namespace

void add_column_operator(const OrtApi& api, OrtCustomOpDomain* domain) { add_operator<ColumnKernel>(api, domain); }

}  // namespace vitprune
