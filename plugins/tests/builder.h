// SPDX-License-Identifier: Apache-2.0
//
// What the programs that act as a builder share: expressions of dimensions, a small implementation of our own that writes formulas as
// text and computes those of constants; fields from key=value; descriptions of tensors; creators of a library.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace builder {

using namespace nvinfer1;

// A dimension expression: a formula, and its value where it is known, which is an upper bound for a size tensor.
class Expression final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    enum class Kind { kSymbol, kConstant, kSizeTensor, kOfSizeTensor };
    Expression(std::string text, Kind kind, int64_t value) : text_(std::move(text)), kind_(kind), value_(value) { mImpl = this; }
    bool isConstant() const override { return kind_ == Kind::kConstant; }
    int64_t getConstantValue() const override { return value_; }
    bool isSizeTensor() const override { return kind_ == Kind::kSizeTensor; }
    const std::string& text() const { return text_; }
    Kind kind() const { return kind_; }
    int64_t value() const { return value_; }

private:
    std::string text_;
    Kind kind_;
    int64_t value_;
};

inline const Expression& own(const IDimensionExpr& expression) { return static_cast<const Expression&>(expression); }
inline const std::string& text_of(const IDimensionExpr& expression) { return own(expression).text(); }

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    using Kind = Expression::Kind;
    Builder() { mImpl = this; }
    const IDimensionExpr* symbol(const std::string& name) { return keep(name, Kind::kSymbol, 0); }
    const IDimensionExpr* constant(int64_t value) override { return keep(std::to_string(value), Kind::kConstant, value); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& a, const IDimensionExpr& b) override {
        const int64_t x = own(a).value(), y = own(b).value();
        const char* name = nullptr;
        int64_t value = 0;
        switch (operation) {
            case DimensionOperation::kSUM: name = "sum", value = x + y; break;
            case DimensionOperation::kSUB: name = "sub", value = x - y; break;
            case DimensionOperation::kMIN: name = "min", value = std::min(x, y); break;
            case DimensionOperation::kFLOOR_DIV: name = "div", value = y > 0 ? x / y : 0; break;
            default: return nullptr;
        }
        if (a.isConstant() && b.isConstant()) return constant(value);
        const bool sized = depends(a) || depends(b);
        return keep(std::string(name) + "(" + text_of(a) + "," + text_of(b) + ")", sized ? Kind::kOfSizeTensor : Kind::kSymbol, value);
    }
    const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr& opt, const IDimensionExpr& upper) override {
        if (output < 0 || depends(opt) || depends(upper)) return nullptr;  // TensorRT wants both without size tensors
        return keep("size(output=" + std::to_string(output) + ",opt=" + text_of(opt) + ",upper=" + text_of(upper) + ")",
                    Kind::kSizeTensor, own(upper).value());
    }

private:
    static bool depends(const IDimensionExpr& one) {
        return own(one).kind() == Kind::kSizeTensor || own(one).kind() == Kind::kOfSizeTensor;
    }
    const IDimensionExpr* keep(const std::string& text, Kind kind, int64_t value) {
        expressions_.emplace_back(text, kind, value);
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
inline PluginField field_of(Argument& argument) {
    const char* text = argument.text.c_str();
    char* end = nullptr;
    argument.integer = std::strtoll(text, &end, 10);
    if (*end == '\0') return {argument.name.c_str(), &argument.integer, PluginFieldType::kINT64, 1};
    argument.number = std::strtof(text, &end);
    if (*end == '\0') return {argument.name.c_str(), &argument.number, PluginFieldType::kFLOAT32, 1};
    return {argument.name.c_str(), text, PluginFieldType::kCHAR, static_cast<int32_t>(argument.text.size())};
}

// A plugin as a build makes it: created, cloned, serialised, made anew from that, attached to a context; null where one is refused.
inline std::unique_ptr<IPluginV3> made(IPluginCreatorV3One& creator, std::deque<Argument>& arguments) {
    std::vector<PluginField> fields;
    for (Argument& argument : arguments) fields.push_back(field_of(argument));
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> first(creator.createPlugin("node", &collection, TensorRTPhase::kBUILD));
    if (!first) return nullptr;
    std::unique_ptr<IPluginV3> cloned(first->clone());
    first.reset();
    auto* runtime = static_cast<IPluginV3OneRuntime*>(cloned->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<IPluginV3> second(creator.createPlugin("node", runtime->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    if (!second) return nullptr;
    auto* again = static_cast<IPluginV3OneRuntime*>(second->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    return std::unique_ptr<IPluginV3>(again->attachToContext(nullptr));
}

inline std::deque<Argument> arguments_of(int count, char** words) {
    std::deque<Argument> arguments;
    for (int k = 0; k < count; ++k) {
        const std::string word = words[k];
        const size_t equals = word.find('=');
        arguments.push_back({word.substr(0, equals), word.substr(equals + 1), 0, 0.0f});
    }
    return arguments;
}

inline DimsExprs dims(std::vector<const IDimensionExpr*> list) {
    DimsExprs result{};
    result.nbDims = static_cast<int32_t>(list.size());
    for (size_t i = 0; i < list.size(); ++i) result.d[i] = list[i];
    return result;
}

inline DynamicPluginTensorDesc description(DataType type, std::vector<int64_t> shape) {
    DynamicPluginTensorDesc result{};
    result.desc.type = type;
    result.desc.format = TensorFormat::kLINEAR;
    result.desc.dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) result.desc.dims.d[i] = shape[i];
    result.min = result.max = result.opt = result.desc.dims;
    return result;
}

// The creators of a library that is a plugin library; none where it is not.
inline std::vector<IPluginCreatorV3One*> creators_of(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return {};
    }
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    if (get_creators == nullptr || dlsym(library, "setLoggerFinder") == nullptr) return {};
    int32_t total = 0;
    IPluginCreatorInterface* const* creators = get_creators(total);
    std::vector<IPluginCreatorV3One*> found;
    for (int32_t i = 0; i < total; ++i) found.push_back(static_cast<IPluginCreatorV3One*>(creators[i]));
    return found;
}

}  // namespace builder
