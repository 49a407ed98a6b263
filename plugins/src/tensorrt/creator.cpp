// SPDX-License-Identifier: Apache-2.0
//
// What TensorRT looks for in a plugin library: getCreators and setLoggerFinder.
#include <atomic>
#include <cstdio>
#include <exception>

#include "tensorrt/log.h"
#include "tensorrt/plugin.h"

namespace vitprune {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

class SampleCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit SampleCreator(bool fused) : fused_(fused), fields_(announced_fields(fused)) {
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }

    nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* collection,
                                      nvinfer1::TensorRTPhase) noexcept override {
        try {
            PluginConfig config;
            config.fused = fused_;
            const std::string problem = collection == nullptr ? "no fields" : read_fields(*collection, config);
            if (problem.empty()) return new SamplePlugin(config);
            log_error(std::string(plugin_name(fused_)) + " '" + (name == nullptr ? "" : name) + "': " + problem);
        } catch (const std::exception& error) {
            log_error(error.what());
        }
        return nullptr;
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return plugin_name(fused_); }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    bool fused_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace

void log_error(const std::string& message) {
    const std::string text = "vitprune: " + message;
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
    } else {
        std::fprintf(stderr, "%s\n", text.c_str());
    }
}

}  // namespace vitprune

extern "C" VP_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static vitprune::SampleCreator sample(false);
    static vitprune::SampleCreator score_sample(true);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&sample, &score_sample};
    count = 2;
    return creators;
}

extern "C" VP_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { vitprune::logger_finder.store(finder); }
