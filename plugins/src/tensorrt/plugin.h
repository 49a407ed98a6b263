// SPDX-License-Identifier: Apache-2.0
//
// TokenSample and TokenScoreSample as a TensorRT plugin (IPluginV3).
//
//   TokenSample       inputs score float [B,P], valid bool [B,P]
//   TokenScoreSample  inputs query [B,H,D], key [B,H,N,D], value [B,H,N,D] (float, half or bfloat16), valid bool [B,P]
//   outputs           index int64 [B,K], keep bool [B,K], count int64 scalar; TokenScoreSample also score float [B,P]
#pragma once

#include <NvInferRuntime.h>

#include "tensorrt/fields.h"

namespace vitprune {

class SamplePlugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
public:
    explicit SamplePlugin(const PluginConfig& config) : config_(config) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const char* getPluginName() const noexcept override;
    const char* getPluginVersion() const noexcept override;
    const char* getPluginNamespace() const noexcept override;

    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, const nvinfer1::DataType* inputs,
                               int32_t input_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs* shape_inputs,
                            int32_t shape_input_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t input_count,
                                   int32_t output_count) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t output_count) const noexcept override;

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::PluginTensorDesc* outputs, int32_t output_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descriptions, const nvinfer1::PluginTensorDesc* output_descriptions,
                    const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    int32_t input_count() const { return config_.fused ? 4 : 2; }
    int32_t valid_input() const { return input_count() - 1; }
    int32_t check_dims(const nvinfer1::Dims& valid, const nvinfer1::Dims& key, ScoreShape& shape) const;

    PluginConfig config_;
    FieldStore fields_;
};

}  // namespace vitprune
