// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/halt_operator.h"

#include <algorithm>

#include "host/token_halt.h"
#include "onnxruntime/pool.h"
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

enum Input { kX, kTotal, kRemainder, kOutput, kPatch };
enum Output { kRows, kOutputOut, kTotalOut, kRemainderOut, kMask, kIndex, kKeep, kPatchOut, kKept, kShape, kScore };

constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt64};
constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kFloat, kInt32, kInt64, kBool, kInt64, kInt64, kInt64, kFloat};

using Dims = std::vector<int64_t>;

class HaltKernel {
public:
    static constexpr const char* kName = "TokenHalt";
    static constexpr Signature kReads = signature(kInputs, 1), kWrites = signature(kOutputs, 0);

    HaltKernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api) {
        parameters_.site = read_site(api, info);
        parameters_.channel = static_cast<int32_t>(std::clamp<int64_t>(integer_of(api, info, "channel"), -1, 1 << 20));
        parameters_.scale = number_of(api, info, "gate_scale");
        parameters_.center = number_of(api, info, "gate_center");
        parameters_.limit = number_of(api, info, "limit");
        parameters_.compacts = integer_of(api, info, "compacts") != 0;
        parameters_.exits = integer_of(api, info, "exits") != 0;
        parameters_.last = integer_of(api, info, "last") != 0;
        const bool alone = parameters_.site.form == SiteForm::kGiven && parameters_.site.combine == Combine::kNothing;
        if (!alone) fail(api, ORT_INVALID_ARGUMENT, "form must be given and combine nothing");
        if (parameters_.channel < 0) fail(api, ORT_INVALID_ARGUMENT, "channel is negative");
        if (parameters_.site.prefix < 1) fail(api, ORT_INVALID_ARGUMENT, "prefix_tokens must be positive");
        if (!(parameters_.limit > 0.0f && parameters_.limit < 1.0f)) fail(api, ORT_INVALID_ARGUMENT, "limit must lie in (0, 1)");
        if (parameters_.last && parameters_.compacts) fail(api, ORT_INVALID_ARGUMENT, "nothing leaves behind the last block");
    }

    void compute(OrtKernelContext* context) const {
        HaltShape shape{};
        const HaltInputs in = inputs(context, shape);
        const int64_t batch = shape.batch, prefix = parameters_.site.prefix;
        float* told = give<float>(api_, context, kScore, {batch, shape.tokens});
        const std::vector<float> total = halt_totals(parameters_, in, shape, told);
        std::vector<float> spare;  // where nobody reads what the step leaves
        float* remainder = at(give<float>(api_, context, kRemainderOut, {batch, prefix}), batch * prefix, spare);
        std::vector<float> sums;
        float* output = at(give<float>(api_, context, kOutputOut, {batch, prefix, shape.width}), batch * prefix * shape.width, sums);
        halt_prefix(parameters_, in, shape, total.data(), remainder, output);
        if (parameters_.last) return;
        if (!parameters_.compacts) return carry(context, shape, total, nullptr, shape.tokens);
        compact(context, in, shape, total);
    }

private:
    static float* at(float* given, int64_t size, std::vector<float>& spare) {
        if (given == nullptr) spare.resize(static_cast<size_t>(size));
        return given == nullptr ? spare.data() : given;
    }

    HaltInputs inputs(OrtKernelContext* context, HaltShape& shape) const {
        const Inputs reader(api_, context);
        const int64_t prefix = parameters_.site.prefix;
        const Dims x = reader.dims(kX);
        if (x.size() != 3 || x[1] <= prefix) fail(api_, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
        if (parameters_.channel >= x[2]) fail(api_, ORT_INVALID_ARGUMENT, "channel is not one of x");
        SiteShape checked;
        check_own(api_, check_site_shape(parameters_.site, {x[0], x[1] - prefix, x[2], 0, 0}, checked));
        shape = {checked.batch, checked.tokens(), checked.width};
        const HaltInputs in{reader.take<float>(kX, x, "x"), reader.take<float>(kTotal, {x[0], x[1]}, "total"),
                            reader.take<float>(kRemainder, {x[0], prefix}, "remainder"),
                            reader.take<float>(kOutput, {x[0], prefix, x[2]}, "output"),
                            reader.take<int64_t>(kPatch, {x[0], x[1] - prefix}, "patch")};
        const bool whole = (in.total == nullptr) == (in.remainder == nullptr) && (in.total == nullptr) == (in.output == nullptr);
        if (!whole) fail(api_, ORT_INVALID_ARGUMENT, "total, remainder and output are there together or not at all");
        return in;
    }

    void carry(OrtKernelContext* context, const HaltShape& shape, const std::vector<float>& total, const Selection* selection,
               int64_t rows) const {
        halt_carry(parameters_, shape, total.data(), selection, give<float>(api_, context, kTotalOut, {shape.batch, rows}),
                   give<int32_t>(api_, context, kMask, {shape.batch, rows}));
    }

    void compact(OrtKernelContext* context, const HaltInputs& in, const HaltShape& shape, const std::vector<float>& total) const {
        const int64_t prefix = parameters_.site.prefix, batch = shape.batch;
        const std::vector<float> left = halt_left(parameters_, shape, total.data());
        SiteInputs site{};
        site.x = in.x, site.score = left.data(), site.patch = in.patch;
        SiteShape sizes{};
        sizes.batch = shape.batch, sizes.patches = shape.tokens - parameters_.site.prefix, sizes.prefix = parameters_.site.prefix;
        sizes.width = shape.width;
        const ForEach each = pool_of(context);
        const SiteDecision decided = decide_site(parameters_.site, site, sizes, each);
        const int64_t count = decided.selection.count;
        SiteOutputs out{};
        out.count = count;
        out.rows = give<float>(api_, context, kRows, {batch, prefix + count, shape.width});
        if (out.rows == nullptr) fail(api_, ORT_INVALID_ARGUMENT, "a node that compacts has rows");
        out.index = give<int64_t>(api_, context, kIndex, {batch, count});
        out.keep = give<uint8_t>(api_, context, kKeep, {batch, count});
        out.patch = give<int64_t>(api_, context, kPatchOut, {batch, count});
        out.kept = give<int64_t>(api_, context, kKept, {batch, count});
        if (int64_t* dims = give<int64_t>(api_, context, kShape, {3})) {
            dims[0] = batch, dims[1] = prefix + count, dims[2] = shape.width;
        }
        write_site(parameters_.site, site, sizes, decided, out, nullptr, each);
        carry(context, shape, total, &decided.selection, prefix + count);
    }

    const OrtApi& api_;
    HaltParameters parameters_;
};

}  // namespace

void add_halt_operator(const OrtApi& api, OrtCustomOpDomain* domain) { add_operator<HaltKernel>(api, domain); }

}  // namespace vitprune
