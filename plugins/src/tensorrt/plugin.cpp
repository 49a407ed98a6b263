// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/plugin.h"

#include <new>

#include "cuda/launch.h"
#include "tensorrt/element_types.h"
#include "tensorrt/shapes.h"

namespace vitprune {
namespace {

using namespace nvinfer1;

constexpr int32_t kCountOutput = 2;
constexpr DataType kOutputTypes[] = {DataType::kINT64, DataType::kBOOL, DataType::kINT64, DataType::kFLOAT};

}  // namespace

IPluginCapability* SamplePlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        default: return nullptr;
    }
}

IPluginV3* SamplePlugin::clone() noexcept { return new (std::nothrow) SamplePlugin(config_); }

const char* SamplePlugin::getPluginName() const noexcept { return plugin_name(config_.fused); }
const char* SamplePlugin::getPluginVersion() const noexcept { return kVersion; }
const char* SamplePlugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t SamplePlugin::getNbOutputs() const noexcept { return config_.fused ? 4 : 3; }

int32_t SamplePlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType*, int32_t) const noexcept {
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = kOutputTypes[i];
    return 0;
}

int32_t SamplePlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count_given, const DimsExprs*, int32_t,
                                      DimsExprs* outputs, int32_t output_count, IExprBuilder& builder) noexcept {
    if (input_count_given != input_count() || output_count != getNbOutputs()) return refuse("wrong number of tensors");
    const DimsExprs& valid = inputs[valid_input()];
    if (valid.nbDims != 2) return refuse("valid must have the shape [batch, patches]");
    const IDimensionExpr* slots = kept_slots(builder, config_.sample, valid.d[1], kCountOutput);
    for (int32_t i = 0; i < 2; ++i) {
        outputs[i].nbDims = 2;
        outputs[i].d[0] = valid.d[0];
        outputs[i].d[1] = slots;
    }
    outputs[kCountOutput].nbDims = 0;
    if (config_.fused) outputs[3] = valid;
    return 0;
}

bool SamplePlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t, int32_t) noexcept {
    const PluginTensorDesc& own = tensors[position].desc;
    if (own.format != TensorFormat::kLINEAR) return false;
    if (position >= input_count()) return own.type == kOutputTypes[position - input_count()];
    if (position == valid_input()) return own.type == DataType::kBOOL;
    if (!config_.fused) return own.type == DataType::kFLOAT;
    return position == 0 ? is_element(own.type) : own.type == tensors[0].desc.type;
}

// Sizes of one call; a dimension that is not known yet (-1) is refused by the checks of the parameters.
int32_t SamplePlugin::check_dims(const Dims& valid, const Dims& key, ScoreShape& shape) const {
    if (valid.nbDims != 2) return VP_BAD_PATCHES;
    if (!config_.fused) return check_score_shape(valid.d[0], 1, valid.d[1], 0, 1, shape);
    if (key.nbDims != 4) return VP_BAD_HEADS;
    if (key.d[0] != valid.d[0]) return VP_BAD_BATCH;
    if (key.d[2] != valid.d[1] + config_.score.prefix) return VP_BAD_PREFIX;
    return check_score_shape(valid.d[0], key.d[1], valid.d[1], config_.score.prefix, key.d[3], shape);
}

int32_t SamplePlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                                      int32_t) noexcept {
    ScoreShape shape;
    const int32_t status = check_dims(inputs[valid_input()].max, inputs[config_.fused ? 1 : 0].max, shape);
    return status == VP_OK ? 0 : refuse(vp_status_string(status));
}

size_t SamplePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                                      int32_t) const noexcept {
    ScoreShape shape;
    if (check_dims(inputs[valid_input()].max, inputs[config_.fused ? 1 : 0].max, shape) != VP_OK) return 0;
    return config_.fused ? score_workspace(shape) : sample_workspace(shape.batch, shape.patches);
}

int32_t SamplePlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*, int32_t) noexcept {
    ScoreShape shape;
    const int32_t status = check_dims(inputs[valid_input()].dims, inputs[config_.fused ? 1 : 0].dims, shape);
    return status == VP_OK ? 0 : refuse(vp_status_string(status));
}

int32_t SamplePlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*, const void* const* inputs,
                              void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    ScoreShape shape;
    const int32_t status =
        check_dims(input_descriptions[valid_input()].dims, input_descriptions[config_.fused ? 1 : 0].dims, shape);
    if (status != VP_OK) return refuse(vp_status_string(status));
    SampleTensors tensors{static_cast<const float*>(inputs[0]), static_cast<const uint8_t*>(inputs[valid_input()]),
                          static_cast<int64_t*>(outputs[0]), static_cast<uint8_t*>(outputs[1]),
                          static_cast<int64_t*>(outputs[kCountOutput])};
    cudaError_t error;
    if (config_.fused) {
        float* score = static_cast<float*>(outputs[3]);
        tensors.score = score;
        error = score_sample_on_device(config_.score, config_.sample, element_dtype(input_descriptions[0].type), inputs[0],
                                       inputs[1], inputs[2], score, tensors, shape, workspace, stream);
    } else {
        error = sample_on_device(config_.sample, tensors, shape.batch, shape.patches, workspace, stream);
    }
    return error == cudaSuccess ? 0 : refuse(cudaGetErrorString(error));
}

// An instance keeps nothing between calls, so a context can have a plain copy.
IPluginV3* SamplePlugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

const PluginFieldCollection* SamplePlugin::getFieldsToSerialize() noexcept { return write_fields(config_, fields_); }

}  // namespace vitprune
