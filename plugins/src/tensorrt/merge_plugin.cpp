// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/merge_plugin.h"

#include "cuda/merge_launch.h"
#include "tensorrt/merge_shapes.h"
#include "tensorrt/shapes.h"

namespace vitprune {
namespace {

using namespace nvinfer1;

// K as a formula, or a size tensor.
const IDimensionExpr* slots_of(IExprBuilder& builder, const MergeConfig& config, const IDimensionExpr* patches) {
    const MergeParameters& merge = config.merge;
    const int32_t count = position_of(config.outputs, MergeOutput::kCount);
    if (merge.padded) return builder.constant(merge.most);
    if (knows_count(merge)) {
        const IDimensionExpr* rounded = plus(builder, patches, 1 - first_of_a(merge.prefix));
        const IDimensionExpr* members = builder.operation(DimensionOperation::kFLOOR_DIV, *rounded, *builder.constant(2));
        return builder.operation(DimensionOperation::kSUB, *patches, *smaller(builder, members, merge.pair.pairs));
    }
    if (config.kind == MergeKind::kSampled) return kept_slots(builder, merge.site.sample, patches, count);
    const bool bounded = config.kind == MergeKind::kWard && merge.most > 0;
    const IDimensionExpr* upper = bounded ? smaller(builder, patches, merge.most) : patches;
    return builder.declareSizeTensor(count, *upper, *upper);
}

// The tensors of a call by their roles, null where a site has none.
class Bound {
public:
    Bound(const MergeConfig& config, const void* const* inputs, void* const* outputs)
        : config_(config), inputs_(inputs), outputs_(outputs) {}

    MergeInputs inputs() const {
        MergeInputs in{};
        in.x = read<float>(MergeInput::kX);
        in.products = read<float>(MergeInput::kProducts);
        in.metric = read<float>(MergeInput::kMetric);
        in.gram = read<float>(MergeInput::kGram);
        in.attention = read<float>(MergeInput::kAttention);
        in.query = read<float>(MergeInput::kQuery);
        in.key = read<float>(MergeInput::kKey);
        in.value = read<float>(MergeInput::kValue);
        in.score = read<float>(MergeInput::kScore);
        in.bias = read<float>(MergeInput::kAskedBias);
        in.size = read<float>(MergeInput::kSize);
        in.patch = read<int64_t>(MergeInput::kPatch);
        in.valid = read<uint8_t>(MergeInput::kValid);
        in.group = read<int64_t>(MergeInput::kGroup);
        return in;
    }

    MergeOutputs outputs(int64_t count) const {
        MergeOutputs out{};
        out.rows = written<float>(MergeOutput::kRows);
        out.size = written<float>(MergeOutput::kSize);
        out.bias = written<float>(MergeOutput::kBias);
        out.index = written<int64_t>(MergeOutput::kIndex);
        out.keep = written<uint8_t>(MergeOutput::kKeep);
        out.group = written<int64_t>(MergeOutput::kGroup);
        out.patch = written<int64_t>(MergeOutput::kPatch);
        out.kept = written<int64_t>(MergeOutput::kKept);
        out.score = written<float>(MergeOutput::kScore);
        out.count = count;
        return out;
    }

    int64_t* count() const { return written<int64_t>(MergeOutput::kCount); }

private:
    template <typename Value>
    const Value* read(MergeInput role) const {
        const int32_t position = position_of(config_.inputs, role);
        return position < 0 ? nullptr : static_cast<const Value*>(inputs_[position]);
    }
    template <typename Value>
    Value* written(MergeOutput role) const {
        const int32_t position = position_of(config_.outputs, role);
        return position < 0 ? nullptr : static_cast<Value*>(outputs_[position]);
    }

    const MergeConfig& config_;
    const void* const* inputs_;
    void* const* outputs_;
};

}  // namespace

const char* MergePlugin::getPluginName() const noexcept { return merge_name(config_.kind); }

int32_t MergePlugin::getNbOutputs() const noexcept { return static_cast<int32_t>(config_.outputs.size()); }

int32_t MergePlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType*, int32_t) const noexcept {
    if (output_count != getNbOutputs()) return refuse("wrong number of tensors");
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = kind_of(config_.outputs[i]).type;
    return 0;
}

int32_t MergePlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs,
                                     int32_t output_count, IExprBuilder& builder) noexcept {
    const int32_t known = static_cast<int32_t>(config_.inputs.size());
    if (input_count != known || output_count != getNbOutputs()) return refuse("wrong number of tensors");
    const DimsExprs& x = inputs[position_of(config_.inputs, MergeInput::kX)];
    if (x.nbDims != 3) return refuse("x must have the shape [batch, tokens, width]");
    const int32_t prefix = config_.merge.prefix;
    const IDimensionExpr *batch = x.d[0], *one = builder.constant(1), *patches = minus(builder, x.d[1], prefix);
    const IDimensionExpr* slots = slots_of(builder, config_, patches);
    const IDimensionExpr* rows = plus(builder, slots, prefix);
    for (int32_t i = 0; i < output_count; ++i) {
        switch (config_.outputs[i]) {
            case MergeOutput::kRows: outputs[i] = dims_of({batch, rows, x.d[2]}); break;
            case MergeOutput::kSize: outputs[i] = dims_of({batch, rows}); break;
            case MergeOutput::kBias: outputs[i] = dims_of({batch, one, one, rows}); break;
            case MergeOutput::kGroup: outputs[i] = inputs[position_of(config_.inputs, MergeInput::kGroup)]; break;
            case MergeOutput::kScore: outputs[i] = dims_of({batch, patches}); break;
            case MergeOutput::kCount: outputs[i] = dims_of({}); break;
            default: outputs[i] = dims_of({batch, slots});
        }
    }
    return 0;
}

bool MergePlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                            int32_t) noexcept {
    const PluginTensorDesc& own = tensors[position].desc;
    const bool entering = position < input_count;
    const DataType type =
        entering ? kind_of(config_.inputs[position]).type : kind_of(config_.outputs[position - input_count]).type;
    return own.format == TensorFormat::kLINEAR && own.type == type;
}

int32_t MergePlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*, int32_t) noexcept {
    MergeShape shape;
    const std::string problem = largest_sizes(config_, inputs, shape);
    return problem.empty() ? 0 : refuse(problem);
}

size_t MergePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                                     int32_t) const noexcept {
    MergeShape shape;
    const bool known = largest_sizes(config_, inputs, shape).empty();
    return known ? merge_workspace(config_.merge, shape) : 0;
}

int32_t MergePlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*, int32_t) noexcept {
    MergeShape shape;
    const std::string problem = present_sizes(config_, inputs, shape);
    return problem.empty() ? 0 : refuse(problem);
}

int32_t MergePlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*, const void* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    MergeShape shape;
    const std::string problem = present_sizes(config_, input_descriptions, shape);
    if (!problem.empty()) return refuse(problem);
    const Bound bound(config_, inputs, outputs);
    const MergeInputs in = bound.inputs();
    const MergeOutputs out = bound.outputs(known_count(config_.merge, shape.patches));
    cudaError_t error = decide_merge_on_device(config_.merge, in, shape, workspace, stream);
    if (error == cudaSuccess) error = write_merge_on_device(config_.merge, in, shape, out, bound.count(), workspace, stream);
    return error == cudaSuccess ? 0 : refuse(cudaGetErrorString(error));
}

const PluginFieldCollection* MergePlugin::getFieldsToSerialize() noexcept { return write_merge_fields(config_, fields_); }

}  // namespace vitprune
