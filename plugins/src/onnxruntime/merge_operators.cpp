// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/merge_operators.h"

#include <algorithm>

#include "host/merge_decision.h"
#include "host/sketch_products.h"
#include "onnxruntime/merge_tensors.h"
#include "onnxruntime/pool.h"

namespace vitprune {
namespace {

template <MergeKind kKind>
class MergeKernel {
public:
    using Form = MergeForm<kKind>;
    static constexpr const char* kName = Form::kName;
    static constexpr Signature kReads = signature(Form::kInputs, Form::kRequired), kWrites = signature(Form::kOutputs, 5);

    MergeKernel(const OrtApi& api, const OrtKernelInfo* info) : api_(api), node_(api, info, kKind) {}

    void compute(OrtKernelContext* context) const {
        const MergeTensors tensors(api_, context, node_);
        check_numbers(api_, tensors);
        const ForEach each = pool_of(context);
        const MergeDecision decided = decide_merge(node_.parameters, tensors.in, tensors.shape, each);
        if (!decided.fits) fail(api_, ORT_FAIL, vp_status_string(VP_NO_ROOM));
        const MergeResults made = merge_results(api_, context, kKind, tensors, decided.count);
        write_merge(node_.parameters, tensors.in, tensors.shape, decided, made.out, each);
        if (made.shape != nullptr) std::copy(made.dims.begin(), made.dims.end(), made.shape);
    }

private:
    const OrtApi& api_;
    MergeNode node_;
};

constexpr ONNXTensorElementDataType kFloats[] = {kFloat, kFloat};

// Inner products of the sketches of the rows behind the prefix.
class SketchKernel {
public:
    static constexpr const char* kName = "SketchProducts";
    static constexpr Signature kReads = signature(kFloats), kWrites{kFloats, 1, 1};

    SketchKernel(const OrtApi& api, const OrtKernelInfo* info)
        : api_(api), prefix_(integer_of(api, info, "prefix")), sums_(integer_of(api, info, "sums")) {
        if (prefix_ < 0 || sums_ < 1) fail(api, ORT_INVALID_ARGUMENT, "an attribute is negative");
    }

    void compute(OrtKernelContext* context) const {
        const TensorView x = input_tensor(api_, context, 0), signs = input_tensor(api_, context, 1);
        if (x.dims.size() != 3 || x.dims[1] < prefix_ || signs.dims != std::vector<int64_t>{x.dims[2]}) {
            fail(api_, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width], with a sign for every channel");
        }
        const int64_t batch = x.dims[0], patches = x.dims[1] - prefix_, width = x.dims[2];
        float* gram = give<float>(api_, context, 0, {batch, patches, patches});
        pool_of(context)(static_cast<size_t>(batch), [&](size_t b) {
            const float* rows = static_cast<const float*>(x.data) + (static_cast<int64_t>(b) * x.dims[1] + prefix_) * width;
            sketch_products(rows, patches, width, static_cast<const float*>(signs.data), sums_, gram + b * patches * patches);
        });
    }

private:
    const OrtApi& api_;
    int64_t prefix_, sums_;
};

}  // namespace

void add_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain) {
    add_operator<MergeKernel<MergeKind::kPair>>(api, domain);
    add_operator<MergeKernel<MergeKind::kWard>>(api, domain);
    add_operator<MergeKernel<MergeKind::kSampled>>(api, domain);
    add_operator<SketchKernel>(api, domain);
}

}  // namespace vitprune
