// SPDX-License-Identifier: Apache-2.0
//
// Loads the plugin library as TensorRT would, without TensorRT: prints one JSON line per question asked on the command line.
//   plugin_driver LIBRARY creators
//   plugin_driver LIBRARY shapes NAME key=value ...   output shapes, serialised fields, formats and workspace
// A first key=value of the form types=5,0,... gives types of PruneSite's inputs (nvinfer1::DataType), in order.
#include "builder.h"

namespace {

using namespace builder;

// An input of a plugin: its type, its dimensions as symbols, and their sizes for a batch of 4 with 196 patches and 1 prefix token.
struct Input {
    DataType type;
    std::vector<const char*> symbols;
    std::vector<int64_t> sizes;
};

std::vector<Input> inputs_of(const std::string& name, const std::deque<Argument>& arguments) {
    const Input patches{DataType::kFLOAT, {"B", "P"}, {4, 196}}, valid{DataType::kBOOL, {"B", "P"}, {4, 196}};
    if (name == "TokenSample") return {patches, valid};
    if (name == "TokenScoreSample") {
        const Input keys{DataType::kHALF, {"B", "H", "N", "D"}, {4, 6, 197, 64}};
        return {{DataType::kHALF, {"B", "H", "D"}, {4, 6, 64}}, keys, keys, valid};
    }
    const Input rows{DataType::kFLOAT, {"B", "N", "C"}, {4, 197, 384}};
    std::vector<Input> inputs;
    for (const Argument& argument : arguments) {
        for (size_t at = 0; argument.name == "inputs" && at <= argument.text.size();) {
            const size_t end = std::min(argument.text.find(',', at), argument.text.size());
            const std::string role = argument.text.substr(at, end - at);
            if (role == "query" && name != "WardMerge") inputs.push_back({DataType::kFLOAT, {"B", "C"}, {4, 384}});
            else if (role == "valid") inputs.push_back(valid);
            else if (role == "score") inputs.push_back(patches);
            else if (role == "patch") inputs.push_back({DataType::kINT64, {"B", "P"}, {4, 196}});
            else if (role == "theta") inputs.push_back({DataType::kFLOAT, {}, {}});
            else if (role == "products") inputs.push_back({DataType::kFLOAT, {"B", "A", "A'"}, {4, 98, 98}});
            else if (role == "gram") inputs.push_back({DataType::kFLOAT, {"B", "P", "P"}, {4, 196, 196}});
            else if (role == "attention") inputs.push_back({DataType::kFLOAT, {"B", "N", "H"}, {4, 197, 6}});
            else if (role == "size") inputs.push_back({DataType::kFLOAT, {"B", "N"}, {4, 197}});
            else if (role == "asked_bias") inputs.push_back({DataType::kFLOAT, {"B", "1", "1", "N"}, {4, 1, 1, 197}});
            else if (role == "group") inputs.push_back({DataType::kINT64, {"B", "G"}, {4, 196}});
            else inputs.push_back(rows);
            at = end + 1;
        }
    }
    return inputs;
}

void print_shapes(IPluginV3OneBuild& build, const std::vector<Input>& given) {
    Builder builder;
    std::vector<DimsExprs> inputs;
    for (const Input& one : given) {
        std::vector<const IDimensionExpr*> list;
        for (const char* symbol : one.symbols) list.push_back(builder.symbol(symbol));
        inputs.push_back(dims(list));
    }
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

// Which of one changed type or layout per position is refused.
void print_formats(IPluginV3OneBuild& build, const std::vector<Input>& given) {
    std::vector<DynamicPluginTensorDesc> tensors;
    for (const Input& one : given) tensors.push_back(description(one.type, one.sizes));
    const int32_t inputs = static_cast<int32_t>(tensors.size());
    const int32_t outputs = build.getNbOutputs();
    std::vector<DataType> entering, types(outputs);
    for (const Input& one : given) entering.push_back(one.type);
    build.getOutputDataTypes(types.data(), outputs, entering.data(), inputs);
    for (const DataType type : types) tensors.push_back(description(type, {4, 196}));
    std::printf(", \"output_types\": [");
    for (int32_t i = 0; i < outputs; ++i) std::printf("%s%d", i ? ", " : "", static_cast<int>(types[i]));
    std::printf("], \"formats\": [");
    for (int32_t i = 0; i < inputs + outputs; ++i) {
        const DynamicPluginTensorDesc good = tensors[i];
        const bool accepted = build.supportsFormatCombination(i, tensors.data(), inputs, outputs);
        tensors[i].desc.type = good.desc.type == DataType::kINT32 ? DataType::kINT64 : DataType::kINT32;
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
    // As where tokens follow the data: no dimension is known, and the bounds of all tensors but the first are wider.
    for (int32_t i = 1; i < inputs; ++i) {
        for (int32_t k = 0; k < tensors[i].max.nbDims; ++k) tensors[i].desc.dims.d[k] = -1;
        if (tensors[i].max.nbDims > 1) tensors[i].max.d[1] += 3;
    }
    std::printf(", \"configure_bounds\": %d", build.configurePlugin(tensors.data(), inputs, tensors.data() + inputs, outputs));
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

// Takes `types` off the arguments.
std::vector<DataType> stated_types(std::deque<Argument>& arguments) {
    std::vector<DataType> types;
    if (arguments.empty() || arguments.front().name != "types") return types;
    const std::string text = arguments.front().text + ",";
    for (size_t at = 0; at < text.size(); at = text.find(',', at) + 1) types.push_back(static_cast<DataType>(std::atoi(&text[at])));
    arguments.pop_front();
    return types;
}

int answer_shapes(IPluginCreatorV3One& creator, std::deque<Argument>& arguments) {
    const std::vector<DataType> types = stated_types(arguments);
    const std::unique_ptr<IPluginV3> plugin = made(creator, arguments);
    if (!plugin) return 3;
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::printf("{\"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", ", core->getPluginName(),
                core->getPluginVersion(), core->getPluginNamespace());
    std::vector<Input> inputs = inputs_of(core->getPluginName(), arguments);
    for (size_t i = 0; i < std::min(types.size(), inputs.size()); ++i) inputs[i].type = types[i];
    print_shapes(*build, inputs);
    print_formats(*build, inputs);
    std::printf(", \"fields\": ");
    print_fields(*runtime->getFieldsToSerialize());
    std::printf("}\n");
    return 0;
}

}  // namespace

int main(int count, char** words) {
    if (count < 3) return 2;
    const std::string question = words[2];
    const std::vector<IPluginCreatorV3One*> creators = creators_of(words[1]);
    for (IPluginCreatorV3One* creator : creators) {
        if (question == "creators") {
            std::printf("{\"kind\": \"%s\", \"name\": \"%s\", \"version\": \"%s\", \"namespace\": \"%s\", \"fields\": ",
                        creator->getInterfaceInfo().kind, creator->getPluginName(), creator->getPluginVersion(),
                        creator->getPluginNamespace());
            print_fields(*creator->getFieldNames());
            std::printf("}\n");
        } else if (count > 3 && std::strcmp(creator->getPluginName(), words[3]) == 0) {
            std::deque<Argument> arguments = arguments_of(count - 4, words + 4);
            return answer_shapes(*creator, arguments);
        }
    }
    return question == "creators" && !creators.empty() ? 0 : 2;
}
