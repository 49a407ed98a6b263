// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/runtime_op.h"

namespace vitprune {

RuntimeValue::RuntimeValue(const OrtApi& api, const OrtMemoryInfo* memory, float* data, const std::vector<int64_t>& dims)
    : value_(nullptr, api.ReleaseValue) {
    size_t count = 1;
    for (const int64_t dim : dims) count *= static_cast<size_t>(dim);
    OrtValue* made = nullptr;
    check(api.CreateTensorWithDataAsOrtValue(memory, data, count * sizeof(float), dims.data(), dims.size(),
                                             ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &made));
    value_.reset(made);
}

RuntimeOp::RuntimeOp(const OrtApi& api, const OrtKernelInfo* info, const char* name, const char* domain, int version, int inputs,
                     const std::vector<Attribute>& attributes)
    : api_(api), op_(nullptr, api.ReleaseOp) {
    std::vector<std::unique_ptr<OrtOpAttr, void (*)(OrtOpAttr*)>> owned;
    std::vector<OrtOpAttr*> given;
    for (const Attribute& one : attributes) {
        const bool whole = one.type == ORT_OP_ATTR_INT;
        const void* value = whole ? static_cast<const void*>(&one.integer) : &one.number;
        OrtOpAttr* made = nullptr;
        check(api.CreateOpAttr(one.name, value, 1, one.type, &made));
        owned.emplace_back(made, api.ReleaseOpAttr);
        given.push_back(made);
    }
    const char* constraint = "T";
    const ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    OrtOp* op = nullptr;
    check(api.CreateOp(info, name, domain, version, &constraint, &type, 1, given.data(), static_cast<int>(given.size()), inputs, 1, &op));
    op_.reset(op);
}

void RuntimeOp::operator()(const OrtKernelContext* context, const std::vector<const OrtValue*>& in, OrtValue* out) const {
    check(api_.InvokeOp(context, op_.get(), in.data(), static_cast<int>(in.size()), &out, 1));
}

RuntimeMemory cpu_memory(const OrtApi& api) {
    OrtMemoryInfo* made = nullptr;
    check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &made));
    return {made, api.ReleaseMemoryInfo};
}

}  // namespace vitprune
