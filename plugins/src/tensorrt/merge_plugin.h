// SPDX-License-Identifier: Apache-2.0
//
// PairMerge, WardMerge and SampledMerge as TensorRT plugins (IPluginV3): types and shapes are those of VpMergeTensors, but bias is
// [B,1,1,M], as attention adds it to its logits, and so may be the one that is read, asked_bias; query of SampledMerge may also be
// [B,1,H*D]. Which of the tensors a node has, its attributes say (merge_fields.h). Where K does not follow from the shapes count is a
// size tensor, and an output that must be there.
#pragma once

#include "tensorrt/merge_fields.h"
#include "tensorrt/plugin_base.h"

namespace vitprune {

class MergePlugin final : public PluginBase<MergePlugin, MergeConfig> {
public:
    using PluginBase::PluginBase;

    const char* getPluginName() const noexcept override;
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
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;
};

}  // namespace vitprune
