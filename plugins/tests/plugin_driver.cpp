// SPDX-License-Identifier: Apache-2.0
//
// Loads the plugin library as TensorRT would, without TensorRT: prints one JSON line per question asked on the command line.
//   plugin_driver LIBRARY creators
//   plugin_driver LIBRARY shapes NAME key=value ...   output shapes, serialised fields, formats and workspace
// The dimension expressions are a small implementation of our own that writes formulas as text.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

// A dimension expression: a formula, and its value where it is constant.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    Expression(std::string text, bool constant, int64_t value, bool size_tensor = false)
        : text_(std::move(text)), constant_(constant), value_(value), size_tensor_(size_tensor) {
        mImpl = this;
    }
    bool isConstant() const override { return constant_; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return size_tensor_; }
    const std::string& text() const { return text_; }

private:
    std::string text_;
    bool constant_;
    int64_t value_;
    bool size_tensor_;
};

const std::string& text_of(const IDimensionExpr& expression) { return static_cast<const Expression&>(expression).text(); }

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    Builder() { mImpl = this; }
    const IDimensionExpr* symbol(const std::string& name) { return keep(name, false, 0); }
    const IDimensionExpr* constant(int64_t value) override { return keep(std::to_string(value), true, value); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& a, const IDimensionExpr& b) override {
        const char* name = operation == DimensionOperation::kMIN ? "min" : "other";
        return keep(std::string(name) + "(" + text_of(a) + "," + text_of(b) + ")", false, 0);
    }
    const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr& opt, const IDimensionExpr& upper) override {
        expressions_.emplace_back("size(output=" + std::to_string(output) + ",opt=" + text_of(opt) + ",upper=" + text_of(upper) + ")",
                                  false, 0, true);
        return &expressions_.back();
    }

private:
    const IDimensionExpr* keep(const std::string& text, bool constant, int64_t value) {
        expressions_.emplace_back(text, constant, value);
        return &expressions_.back();
    }
    std::deque<Expression> expressions_;
};

struct Argument {
    std::string name;
    std::string text;
    int64_t integer;
    float number;
};

// key=value: digits are an integer, digits with a point a float, anything else text.
PluginField field_of(Argument& argument) {
    const char* text = argument.text.c_str();
    char* end = nullptr;
    argument.integer = std::strtoll(text, &end, 10);
    if (*end == '\0') return {argument.name.c_str(), &argument.integer, PluginFieldType::kINT64, 1};
    argument.number = std::strtof(text, &end);
    if (*end == '\0') return {argument.name.c_str(), &argument.number, PluginFieldType::kFLOAT32, 1};
    return {argument.name.c_str(), text, PluginFieldType::kCHAR, static_cast<int32_t>(argument.text.size())};
}

DimsExprs dims(std::vector<const IDimensionExpr*> list) {
    DimsExprs result{};
    result.nbDims = static_cast<int32_t>(list.size());
    for (size_t i = 0; i < list.size(); ++i) result.d[i] = list[i];
    return result;
}

void print_shapes(IPluginV3OneBuild& build, bool fused) {
    Builder builder;
    const IDimensionExpr *b = builder.symbol("B"), *p = builder.symbol("P"), *h = builder.symbol("H");
    const IDimensionExpr *n = builder.symbol("N"), *d = builder.symbol("D");
    std::vector<DimsExprs> inputs;
    if (fused) inputs = {dims({b, h, d}), dims({b, h, n, d}), dims({b, h, n, d}), dims({b, p})};
    if (!fused) inputs = {dims({b, p}), dims({b, p})};
    std::vector<DimsExprs> outputs(build.getNbOutputs());
    const int32_t status = build.getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0, outputs.data(),
                                                 static_cast<int32_t>(outputs.size()), builder);
    std::printf("\"status\": %d, \"shapes\": [", status);
    for (size_t i = 0; i < outputs.size(); ++i) {
        std::printf("%s[", i ? ", " : "");
        for (int32_t k = 0; k < outputs[i].nbDims; ++k) std::printf("%s\"%s\"", k ? ", " : "", text_of(*outputs[i].d[k]).c_str());
        std::printf("]");
    }
    std::printf("], \"size_tensor\": %s", outputs[0].d[1]->isSizeTensor() ? "true" : "false");
}

DynamicPluginTensorDesc description(DataType type, std::vector<int64_t> shape) {
    DynamicPluginTensorDesc result{};
    result.desc.type = type;
    result.desc.format = TensorFormat::kLINEAR;
    result.desc.dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) result.desc.dims.d[i] = shape[i];
    result.min = result.max = result.opt = result.desc.dims;
    return result;
}

// Which of one changed type or layout per position is refused, for a batch of 4 with 196 patches.
void print_formats(IPluginV3OneBuild& build, bool fused) {
    std::vector<DynamicPluginTensorDesc> tensors;
    if (fused) {
        tensors = {description(DataType::kHALF, {4, 6, 64}), description(DataType::kHALF, {4, 6, 197, 64}),
                   description(DataType::kHALF, {4, 6, 197, 64}), description(DataType::kBOOL, {4, 196})};
    } else {
        tensors = {description(DataType::kFLOAT, {4, 196}), description(DataType::kBOOL, {4, 196})};
    }
    const int32_t inputs = static_cast<int32_t>(tensors.size());
    const int32_t outputs = build.getNbOutputs();
    std::vector<DataType> types(outputs);
    build.getOutputDataTypes(types.data(), outputs, nullptr, inputs);
    for (const DataType type : types) tensors.push_back(description(type, {4, 196}));
    std::printf(", \"output_types\": [");
    for (int32_t i = 0; i < outputs; ++i) std::printf("%s%d", i ? ", " : "", static_cast<int>(types[i]));
    std::printf("], \"formats\": [");
    for (int32_t i = 0; i < inputs + outputs; ++i) {
        const DynamicPluginTensorDesc good = tensors[i];
        const bool accepted = build.supportsFormatCombination(i, tensors.data(), inputs, outputs);
        tensors[i].desc.type = DataType::kINT32;
        const bool other_type = build.supportsFormatCombination(i, tensors.data(), inputs, outputs);
        tensors[i] = good;
        tensors[i].desc.format = TensorFormat::kCHW2;
        const bool other_layout = build.supportsFormatCombination(i, tensors.data(), inputs, outputs);
        tensors[i] = good;
        std::printf("%s[%d, %d, %d]", i ? ", " : "", accepted, other_type, other_layout);
    }
    const int32_t configured = build.configurePlugin(tensors.data(), inputs, tensors.data() + inputs, outputs);
    std::printf("], \"configure\": %d, \"workspace\": %zu", configured,
                build.getWorkspaceSize(tensors.data(), inputs, tensors.data() + inputs, outputs));
}

void print_fields(const PluginFieldCollection& collection) {
    std::printf("{");
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        const PluginField& field = collection.fields[i];
        std::printf("%s\"%s\": ", i ? ", " : "", field.name);
        if (field.data == nullptr) {
            std::printf("null");
        } else if (field.type == PluginFieldType::kCHAR) {
            std::printf("\"%s\"", static_cast<const char*>(field.data));
        } else if (field.type == PluginFieldType::kFLOAT32) {
            std::printf("%.9g", static_cast<double>(*static_cast<const float*>(field.data)));
        } else {
            std::printf("%lld", static_cast<long long>(*static_cast<const int64_t*>(field.data)));
        }
    }
    std::printf("}");
}

int answer_shapes(IPluginCreatorV3One& creator, std::vector<Argument>& arguments) {
    std::vector<PluginField> fields;
    for (Argument& argument : arguments) fields.push_back(field_of(argument));
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> first(creator.createPlugin("node", &collection, TensorRTPhase::kBUILD));
    if (!first) return 3;
    // What a build does to a plugin: clone it, serialise the clone, make it anew from that, attach it to a context.
    std::unique_ptr<IPluginV3> cloned(first->clone());
    first.reset();
    auto* runtime = static_cast<IPluginV3OneRuntime*>(cloned->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> second(creator.createPlugin("node", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    auto* second_runtime = static_cast<IPluginV3OneRuntime*>(second->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> attached(second_runtime->attachToContext(nullptr));
    auto* build = static_cast<IPluginV3OneBuild*>(attached->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto* core = static_cast<IPluginV3OneCore*>(attached->getCapabilityInterface(PluginCapabilityType::kCORE));
    auto* last = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    const bool fused = std::strcmp(core->getPluginName(), "TokenScoreSample") == 0;
    std::printf("{\"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", ", core->getPluginName(),
                core->getPluginVersion(), core->getPluginNamespace());
    print_shapes(*build, fused);
    print_formats(*build, fused);
    std::printf(", \"fields\": ");
    print_fields(*last->getFieldsToSerialize());
    std::printf("}\n");
    return 0;
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) return 2;
    void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (get_creators == nullptr || dlsym(library, "setLoggerFinder") == nullptr) return 2;
    int32_t total = 0;
    IPluginCreatorInterface* const* creators = get_creators(total);
    const std::string question = words[2];
    for (int32_t i = 0; i < total; ++i) {
        auto& creator = static_cast<IPluginCreatorV3One&>(*creators[i]);
        if (question == "creators") {
            std::printf("{\"kind\": \"%s\", \"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", \"fields\": ",
                        creators[i]->getInterfaceInfo().kind, creator.getPluginName(), creator.getPluginVersion(),
                        creator.getPluginNamespace());
            print_fields(*creator.getFieldNames());
            std::printf("}\n");
        } else if (count > 3 && std::strcmp(creator.getPluginName(), words[3]) == 0) {
            std::vector<Argument> arguments;
            for (int k = 4; k < count; ++k) {
                const std::string word = words[k];
                const size_t equals = word.find('=');
                arguments.push_back({word.substr(0, equals), word.substr(equals + 1), 0, 0.0f});
            }
            return answer_shapes(creator, arguments);
        }
    }
    return question == "creators" ? 0 : 2;
}
