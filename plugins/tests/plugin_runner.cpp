// SPDX-License-Identifier: Apache-2.0
//
// Runs a plugin of a library as TensorRT would, on host memory: the kernels in it are emulated.
//   plugin_runner LIBRARY NAME FOLDER key=value ...
// FOLDER/inputs.txt has a line per input: type (nvinfer1::DataType), number of dimensions, dimensions; FOLDER/in<i> its data. Writes
// FOLDER/out<i>, as long as TensorRT would allocate it, and prints their shapes as one JSON line. Exit code 4: the plugin wrote where
// it must not.
#include <fstream>
#include <iterator>

#include "builder.h"

namespace {

using namespace builder;

constexpr size_t kGuard = 256;

size_t bytes_of(DataType type) {
    switch (type) {
        case DataType::kINT64: return 8;
        case DataType::kBOOL: return 1;
        case DataType::kHALF:
        case DataType::kBF16: return 2;
        default: return 4;
    }
}

// Memory between two stretches that nobody may write to, full of nonsense.
class Guarded {
public:
    explicit Guarded(size_t bytes) : memory_(bytes + 2 * kGuard, char{0x5a}) {}
    char* data() { return memory_.data() + kGuard; }
    size_t size() const { return memory_.size() - 2 * kGuard; }
    bool intact() const {
        const auto untouched = [](char one) { return one == char{0x5a}; };
        return std::all_of(memory_.begin(), memory_.begin() + kGuard, untouched) &&
               std::all_of(memory_.end() - kGuard, memory_.end(), untouched);
    }

private:
    std::vector<char> memory_;
};

int run(IPluginV3& plugin, const std::string& folder) {
    auto* build = static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    Builder builder;
    std::vector<DynamicPluginTensorDesc> in, out;
    std::vector<DimsExprs> formulas;
    std::deque<Guarded> read, written;
    std::ifstream list(folder + "/inputs.txt");
    for (int32_t type, rank; list >> type >> rank;) {
        std::vector<int64_t> shape(rank);
        for (int64_t& size : shape) list >> size;
        in.push_back(description(static_cast<DataType>(type), shape));
        std::vector<const IDimensionExpr*> constants;
        for (const int64_t size : shape) constants.push_back(builder.constant(size));
        formulas.push_back(dims(constants));
        std::ifstream file(folder + "/in" + std::to_string(in.size() - 1), std::ios::binary);
        const std::vector<char> data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        read.emplace_back(data.size());
        std::copy(data.begin(), data.end(), read.back().data());
    }
    const int32_t inputs = static_cast<int32_t>(in.size()), outputs = build->getNbOutputs();
    std::vector<DataType> given, types(outputs);
    for (const DynamicPluginTensorDesc& one : in) given.push_back(one.desc.type);
    std::vector<DimsExprs> shapes(outputs);
    if (build->getOutputDataTypes(types.data(), outputs, given.data(), inputs) != 0) return 3;
    if (build->getOutputShapes(formulas.data(), inputs, nullptr, 0, shapes.data(), outputs, builder) != 0) return 3;
    std::printf("{\"shapes\": [");
    for (int32_t i = 0; i < outputs; ++i) {
        std::vector<int64_t> shape;
        size_t bytes = bytes_of(types[i]);
        std::printf("%s[", i ? ", " : "");
        for (int32_t k = 0; k < shapes[i].nbDims; ++k) {
            shape.push_back(own(*shapes[i].d[k]).value());
            std::printf("%s%lld", k ? ", " : "", static_cast<long long>(shape.back()));
            bytes *= static_cast<size_t>(shape.back());
        }
        std::printf("]");
        out.push_back(description(types[i], shape));
        written.emplace_back(bytes);
    }
    std::printf("], \"types\": [");
    for (int32_t i = 0; i < outputs; ++i) std::printf("%s%d", i ? ", " : "", static_cast<int>(types[i]));
    std::printf("]}\n");
    std::vector<DynamicPluginTensorDesc> all = in;
    all.insert(all.end(), out.begin(), out.end());
    for (int32_t i = 0; i < inputs + outputs; ++i) {
        if (!build->supportsFormatCombination(i, all.data(), inputs, outputs)) return 3;
    }
    if (build->configurePlugin(in.data(), inputs, out.data(), outputs) != 0) return 3;
    Guarded workspace(build->getWorkspaceSize(in.data(), inputs, out.data(), outputs));
    std::vector<PluginTensorDesc> entering, leaving;
    for (const DynamicPluginTensorDesc& one : in) entering.push_back(one.desc);
    for (const DynamicPluginTensorDesc& one : out) leaving.push_back(one.desc);
    if (runtime->onShapeChange(entering.data(), inputs, leaving.data(), outputs) != 0) return 3;
    std::vector<const void*> sources;
    std::vector<void*> targets;
    for (Guarded& one : read) sources.push_back(one.data());
    for (Guarded& one : written) targets.push_back(one.data());
    if (runtime->enqueue(entering.data(), leaving.data(), sources.data(), targets.data(), workspace.data(), nullptr) != 0) return 3;
    for (int32_t i = 0; i < outputs; ++i) {
        std::ofstream file(folder + "/out" + std::to_string(i), std::ios::binary);
        file.write(written[i].data(), static_cast<std::streamsize>(written[i].size()));
    }
    const auto intact = [](const Guarded& one) { return one.intact(); };
    const bool kept = std::all_of(read.begin(), read.end(), intact) && std::all_of(written.begin(), written.end(), intact);
    return kept && workspace.intact() ? 0 : 4;
}

}  // namespace

int main(int count, char** words) {
    if (count < 4) return 2;
    for (IPluginCreatorV3One* creator : creators_of(words[1])) {
        if (std::strcmp(creator->getPluginName(), words[2]) != 0) continue;
        std::deque<Argument> arguments = arguments_of(count - 4, words + 4);
        const std::unique_ptr<IPluginV3> plugin = made(*creator, arguments);
        return plugin ? run(*plugin, words[3]) : 3;
    }
    return 2;
}
