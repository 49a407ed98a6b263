// SPDX-License-Identifier: Apache-2.0
#include "tensorrt/site_plugin.h"

#include <new>

#include "cuda/site_launch.h"
#include "tensorrt/element_types.h"
#include "tensorrt/shapes.h"
#include "tensorrt/site_shapes.h"

namespace vitprune {

using namespace nvinfer1;

namespace {

// Type of an output, type(role) being that of an input.
template <typename Type>
DataType output_type(SiteOutput role, const Type& type) {
    if (role == SiteOutput::kRows) return type(SiteInput::kX);
    return role == SiteOutput::kRows2 ? type(SiteInput::kH) : kind_of(role).type;
}

}  // namespace

IPluginCapability* SitePlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        default: return nullptr;
    }
}

IPluginV3* SitePlugin::clone() noexcept { return new (std::nothrow) SitePlugin(config_); }

const char* SitePlugin::getPluginName() const noexcept { return kSiteName; }
const char* SitePlugin::getPluginVersion() const noexcept { return kVersion; }
const char* SitePlugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t SitePlugin::getNbOutputs() const noexcept { return static_cast<int32_t>(config_.outputs.size()); }

int32_t SitePlugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                       int32_t input_count) const noexcept {
    const int32_t known = static_cast<int32_t>(config_.inputs.size());
    if (output_count != getNbOutputs() || input_count != known) return refuse("wrong number of tensors");
    const auto type = [&](SiteInput role) { return inputs[position_of(config_.inputs, role)]; };
    for (int32_t i = 0; i < output_count; ++i) outputs[i] = output_type(config_.outputs[i], type);
    return 0;
}

int32_t SitePlugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t, DimsExprs* outputs,
                                    int32_t output_count, IExprBuilder& builder) noexcept {
    const int32_t known = static_cast<int32_t>(config_.inputs.size());
    if (input_count != known || output_count != getNbOutputs()) return refuse("wrong number of tensors");
    const DimsExprs& x = inputs[position_of(config_.inputs, SiteInput::kX)];
    if (x.nbDims != 3) return refuse("x must have the shape [batch, tokens, width]");
    const int32_t prefix = config_.site.prefix, added = config_.site.combine != Combine::kNothing;
    const IDimensionExpr *batch = x.d[0], *one = builder.constant(1), *patches = minus(builder, x.d[1], prefix);
    const IDimensionExpr* slots =
        kept_slots(builder, config_.site.sample, patches, position_of(config_.outputs, SiteOutput::kCount));
    const IDimensionExpr *rows = plus(builder, slots, prefix), *all = plus(builder, slots, prefix + added);
    const int32_t h = position_of(config_.inputs, SiteInput::kH);
    if (h >= 0 && inputs[h].nbDims != 3) return refuse("h must have the shape [batch, tokens, width]");
    for (int32_t i = 0; i < output_count; ++i) {
        switch (config_.outputs[i]) {
            case SiteOutput::kRows: outputs[i] = dims_of({batch, all, x.d[2]}); break;
            case SiteOutput::kRows2: outputs[i] = dims_of({batch, rows, inputs[h].d[2]}); break;
            case SiteOutput::kPatch: outputs[i] = dims_of({batch, plus(builder, slots, added)}); break;
            case SiteOutput::kMask: outputs[i] = dims_of({batch, all}); break;
            case SiteOutput::kBias: outputs[i] = dims_of({batch, one, one, all}); break;
            case SiteOutput::kScore: outputs[i] = dims_of({batch, patches}); break;
            case SiteOutput::kCount: outputs[i] = dims_of({}); break;
            default: outputs[i] = dims_of({batch, slots});
        }
    }
    return 0;
}

bool SitePlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                           int32_t) noexcept {
    const PluginTensorDesc& own = tensors[position].desc;
    if (own.format != TensorFormat::kLINEAR) return false;
    if (position >= input_count) {
        const auto type = [&](SiteInput role) { return tensors[position_of(config_.inputs, role)].desc.type; };
        return own.type == output_type(config_.outputs[position - input_count], type);
    }
    const SiteTensorKind& kind = kind_of(config_.inputs[position]);
    return kind.any_float ? is_element(own.type) : own.type == kind.type;
}

int32_t SitePlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*, int32_t) noexcept {
    SiteShape shape;
    const std::string problem = largest_sizes(config_, inputs, shape);
    return problem.empty() ? 0 : refuse(problem);
}

size_t SitePlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t, const DynamicPluginTensorDesc*,
                                    int32_t) const noexcept {
    SiteShape shape;
    const bool known = largest_sizes(config_, inputs, shape).empty();
    return known ? site_workspace(shape) : 0;
}

int32_t SitePlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t, const PluginTensorDesc*, int32_t) noexcept {
    SiteShape shape;
    const std::string problem = present_sizes(config_, inputs, shape);
    return problem.empty() ? 0 : refuse(problem);
}

int32_t SitePlugin::enqueue(const PluginTensorDesc* input_descriptions, const PluginTensorDesc*, const void* const* inputs,
                            void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    SiteShape shape;
    const std::string problem = present_sizes(config_, input_descriptions, shape);
    if (!problem.empty()) return refuse(problem);
    const auto read = [&](SiteInput role) {
        const int32_t position = position_of(config_.inputs, role);
        return position < 0 ? nullptr : inputs[position];
    };
    const auto floats = [&read](SiteInput role) { return static_cast<const float*>(read(role)); };
    const auto typed = [&](SiteInput role) {
        const int32_t position = position_of(config_.inputs, role);
        return position < 0 ? Typed() : Typed(inputs[position], element_dtype(input_descriptions[position].type));
    };
    const auto written = [&](SiteOutput role) {
        const int32_t position = position_of(config_.outputs, role);
        return position < 0 ? nullptr : outputs[position];
    };
    const auto integers = [&written](SiteOutput role) { return static_cast<int64_t*>(written(role)); };
    const auto reals = [&written](SiteOutput role) { return static_cast<float*>(written(role)); };
    SiteInputs in{};
    in.x = typed(SiteInput::kX);
    in.h = typed(SiteInput::kH);
    in.query = typed(SiteInput::kQuery);
    in.key = typed(SiteInput::kKey);
    in.value = typed(SiteInput::kValue);
    in.score = floats(SiteInput::kScore);
    in.theta = floats(SiteInput::kTheta);
    in.valid = static_cast<const uint8_t*>(read(SiteInput::kValid));
    in.patch = static_cast<const int64_t*>(read(SiteInput::kPatch));
    SiteOutputs out{};
    out.rows = written(SiteOutput::kRows);
    out.rows2 = written(SiteOutput::kRows2);
    out.index = integers(SiteOutput::kIndex);
    out.keep = static_cast<uint8_t*>(written(SiteOutput::kKeep));
    out.patch = integers(SiteOutput::kPatch);
    out.kept = integers(SiteOutput::kKept);
    out.mask = static_cast<int32_t*>(written(SiteOutput::kMask));
    out.score_kept = reals(SiteOutput::kScoreKept);
    out.bias = reals(SiteOutput::kBias);
    out.count = config_.site.sample.padded ? row_limit(config_.site.sample, shape.patches) : 0;
    cudaError_t error = select_site_on_device(config_.site, in, shape, workspace, stream);
    if (error == cudaSuccess) {
        error = write_site_on_device(config_.site, in, shape, out, integers(SiteOutput::kCount), reals(SiteOutput::kScore), workspace,
                                     stream);
    }
    return error == cudaSuccess ? 0 : refuse(cudaGetErrorString(error));
}

// An instance keeps nothing between calls, so a context can have a plain copy.
IPluginV3* SitePlugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

const PluginFieldCollection* SitePlugin::getFieldsToSerialize() noexcept { return write_site_fields(config_, fields_); }

}  // namespace vitprune
