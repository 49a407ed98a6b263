// SPDX-License-Identifier: Apache-2.0
//
// What all plugins answer alike.
#pragma once

#include <new>

#include "tensorrt/field_values.h"
#include "tensorrt/log.h"

namespace vitprune {

// Own: the plugin. Config: what distinguishes one instance; an instance keeps nothing else between calls.
template <typename Own, typename Config>
class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuild,
                   public nvinfer1::IPluginV3OneRuntime {
public:
    explicit PluginBase(const Config& config) : config_(config) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
            default: return nullptr;
        }
    }

    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Own(config_); }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

protected:
    Config config_;
    FieldStore fields_;
};

}  // namespace vitprune
