// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/predictor_operator.h"

#include <algorithm>

#include "onnxruntime/cpu_operator.h"
#include "onnxruntime/runtime_op.h"

namespace vitprune {
namespace {

enum Input {
    kX, kNormWeight, kNormBias, kTokenWeight, kTokenBias, kImageWeight, kImageBias, kHereWeight, kThereWeight, kMixBias, kNextWeight,
    kNextBias, kGapWeight, kGapBias, kCount
};
constexpr ONNXTensorElementDataType kFloats[kCount] = {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat,
                                                       kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat};
using Dims = std::vector<int64_t>;

// A kernel that is made this way gets no defaults.
const std::vector<RuntimeOp::Attribute> kPlain = {{"transA", ORT_OP_ATTR_INT, 0, 0.0f},
                                                  {"transB", ORT_OP_ATTR_INT, 0, 0.0f},
                                                  {"alpha", ORT_OP_ATTR_FLOAT, 0, 1.0f},
                                                  {"beta", ORT_OP_ATTR_FLOAT, 0, 1.0f}};

class PredictorKernel {
public:
    static constexpr const char* kName = "TokenPredictor";
    static constexpr Signature kReads = signature(kFloats), kWrites{kFloats, 1, 1};

    PredictorKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), prefix_(integer_of(api, info, "prefix_tokens")), memory_(cpu_memory(api)),
          norm_(api, info, "LayerNormalization", "", 17, 3,
                {{"axis", ORT_OP_ATTR_INT, -1, 0.0f}, {"epsilon", ORT_OP_ATTR_FLOAT, 0, number_of(api, info, "epsilon")}}),
          linear_(api, info, "Gemm", "", 13, 3, kPlain), product_(api, info, "Gemm", "", 13, 2, kPlain),
          gelu_(api, info, "Gelu", "com.microsoft", 1, 1) {
        if (prefix_ < 0) fail(api, ORT_INVALID_ARGUMENT, "prefix_tokens is negative");
    }

    void compute(OrtKernelContext* context) const {
        const OrtValue* in[kCount];
        for (size_t index = 0; index < kCount; ++index) check(api_.KernelContext_GetInput(context, index, &in[index]));
        const Dims x = input_tensor(api_, context, kX).dims;
        if (x.size() != 3 || x[1] <= prefix_) fail(api_, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
        const Dims token = input_tensor(api_, context, kTokenWeight).dims, next = input_tensor(api_, context, kNextWeight).dims;
        const int64_t half = token.size() == 2 ? token[1] : 0, quarter = next.size() == 2 ? next[1] : 0;
        check_weights(context, x[2], half, quarter);
        const int64_t batch = x[0], tokens = x[1], rows = batch * tokens;

        const std::unique_ptr<float[]> normed(new float[rows * x[2]]), first(new float[rows * half]), second(new float[rows * half]),
            mean(new float[batch * half]), there(new float[batch * half]);
        const auto on = [&](const std::unique_ptr<float[]>& data, const Dims& dims) {
            return RuntimeValue(api_, memory_.get(), data.get(), dims);
        };
        const RuntimeValue cube = on(normed, x), flat = on(normed, {rows, x[2]}), a = on(first, {rows, half}),
                           b = on(second, {rows, half}), whole = on(mean, {batch, half}), image = on(there, {batch, half});
        norm_(context, {in[kX], in[kNormWeight], in[kNormBias]}, cube.get());
        linear_(context, {flat.get(), in[kImageWeight], in[kImageBias]}, a.get());
        gelu_(context, {a.get()}, b.get());
        average(second.get(), batch, tokens, half, mean.get());
        linear_(context, {whole.get(), in[kThereWeight], in[kMixBias]}, image.get());
        linear_(context, {flat.get(), in[kTokenWeight], in[kTokenBias]}, a.get());
        gelu_(context, {a.get()}, b.get());
        product_(context, {b.get(), in[kHereWeight]}, a.get());
        for (int64_t n = 0; n < rows; ++n) {
            const float* shared = there.get() + n / tokens * half;
            for (int64_t c = 0; c < half; ++c) first[n * half + c] += shared[c];
        }
        gelu_(context, {a.get()}, b.get());
        const RuntimeValue c = on(first, {rows, quarter}), d = on(normed, {rows, quarter}), gap = on(second, {rows, 1});
        linear_(context, {b.get(), in[kNextWeight], in[kNextBias]}, c.get());
        gelu_(context, {c.get()}, d.get());
        linear_(context, {d.get(), in[kGapWeight], in[kGapBias]}, gap.get());
        float* score = give<float>(api_, context, 0, {batch, tokens - prefix_});
        for (int64_t i = 0; i < batch; ++i) {
            score = std::copy_n(second.get() + i * tokens + prefix_, tokens - prefix_, score);
        }
    }

private:
    void check_weights(OrtKernelContext* context, int64_t width, int64_t half, int64_t quarter) const {
        const Dims wanted[kCount] = {{},           {width},      {width}, {width, half},   {half},    {width, half}, {half},
                                     {half, half}, {half, half}, {half},  {half, quarter}, {quarter}, {quarter, 1},  {1}};
        bool sane = half > 0 && quarter > 0 && quarter <= half && quarter <= width;
        for (size_t index = 1; index < kCount; ++index) sane &= input_tensor(api_, context, index).dims == wanted[index];
        if (!sane) fail(api_, ORT_INVALID_ARGUMENT, "the predictor's weights do not fit x and each other");
    }

    // Over the patches of every image.
    void average(const float* rows, int64_t batch, int64_t tokens, int64_t width, float* mean) const {
        std::fill(mean, mean + batch * width, 0.0f);
        for (int64_t b = 0; b < batch; ++b) {
            float* sum = mean + b * width;
            for (int64_t n = prefix_; n < tokens; ++n) {
                for (int64_t c = 0; c < width; ++c) sum[c] += rows[(b * tokens + n) * width + c];
            }
            for (int64_t c = 0; c < width; ++c) sum[c] /= static_cast<float>(tokens - prefix_);
        }
    }

    const OrtApi& api_;
    int64_t prefix_;
    RuntimeMemory memory_;
    RuntimeOp norm_, linear_, product_, gelu_;
};

}  // namespace

void add_predictor_operator(const OrtApi& api, OrtCustomOpDomain* domain) { add_operator<PredictorKernel>(api, domain); }

}  // namespace vitprune
