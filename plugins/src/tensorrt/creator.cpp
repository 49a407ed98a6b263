// SPDX-License-Identifier: Apache-2.0
//
// What TensorRT looks for in a plugin library: getCreators and setLoggerFinder.
#include <atomic>
#include <cstdio>
#include <exception>
#include <iterator>

#include "tensorrt/log.h"
#include "tensorrt/merge_plugin.h"
#include "tensorrt/plugin.h"
#include "tensorrt/site_plugin.h"

namespace vitprune {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// What creators have in common: the fields they announce, and that nothing is thrown beyond them.
class Creator : public nvinfer1::IPluginCreatorV3One {
public:
    Creator(const char* name, std::vector<nvinfer1::PluginField> fields) : name_(name), fields_(std::move(fields)) {
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }

    nvinfer1::IPluginV3* createPlugin(const char* node, const nvinfer1::PluginFieldCollection* collection,
                                      nvinfer1::TensorRTPhase) noexcept override {
        try {
            std::string problem = "no fields";
            if (collection != nullptr) {
                if (nvinfer1::IPluginV3* made = make(*collection, problem)) return made;
            }
            log_error(std::string(name_) + " '" + (node == nullptr ? "" : node) + "': " + problem);
        } catch (const std::exception& error) {
            log_error(error.what());
        }
        return nullptr;
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
    const char* getPluginName() const noexcept override { return name_; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    // A plugin, or null and what is wrong with the fields.
    virtual nvinfer1::IPluginV3* make(const nvinfer1::PluginFieldCollection& collection, std::string& problem) const = 0;

    const char* name_;
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_{};
};

class SampleCreator final : public Creator {
public:
    explicit SampleCreator(bool fused) : Creator(plugin_name(fused), announced_fields(fused)), fused_(fused) {}

private:
    nvinfer1::IPluginV3* make(const nvinfer1::PluginFieldCollection& collection, std::string& problem) const override {
        PluginConfig config;
        config.fused = fused_;
        problem = read_fields(collection, config);
        return problem.empty() ? new SamplePlugin(config) : nullptr;
    }

    bool fused_;
};

class SiteCreator final : public Creator {
public:
    SiteCreator() : Creator(kSiteName, announced_site_fields()) {}

private:
    nvinfer1::IPluginV3* make(const nvinfer1::PluginFieldCollection& collection, std::string& problem) const override {
        SiteConfig config;
        problem = read_site_fields(collection, config);
        return problem.empty() ? new SitePlugin(config) : nullptr;
    }
};

class MergeCreator final : public Creator {
public:
    explicit MergeCreator(MergeKind kind) : Creator(merge_name(kind), announced_merge_fields(kind)), kind_(kind) {}

private:
    nvinfer1::IPluginV3* make(const nvinfer1::PluginFieldCollection& collection, std::string& problem) const override {
        MergeConfig config;
        config.kind = kind_;
        problem = read_merge_fields(collection, config);
        return problem.empty() ? new MergePlugin(config) : nullptr;
    }

    MergeKind kind_;
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
    static vitprune::SiteCreator site;
    static vitprune::MergeCreator pair(vitprune::MergeKind::kPair);
    static vitprune::MergeCreator ward(vitprune::MergeKind::kWard);
    static vitprune::MergeCreator sampled(vitprune::MergeKind::kSampled);
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&sample, &score_sample, &site, &pair, &ward, &sampled};
    count = static_cast<int32_t>(std::size(creators));
    return creators;
}

extern "C" VP_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { vitprune::logger_finder.store(finder); }
