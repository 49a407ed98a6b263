// SPDX-License-Identifier: Apache-2.0
//
// Kernels of ONNX Runtime's own, called from inside an operator of ours, with its threads: no second matrix product in this library.
#pragma once

#include <memory>

#include "onnxruntime/api.h"

namespace vitprune {

// A float tensor on memory of the caller's; made for one call.
class RuntimeValue {
public:
    RuntimeValue(const OrtApi& api, const OrtMemoryInfo* memory, float* data, const std::vector<int64_t>& dims);

    OrtValue* get() const { return value_.get(); }

private:
    std::unique_ptr<OrtValue, void (*)(OrtValue*)> value_;
};

// One kernel of floats with one output. Attributes are numbers.
class RuntimeOp {
public:
    struct Attribute {
        const char* name;
        OrtOpAttrType type;  // ORT_OP_ATTR_INT or ORT_OP_ATTR_FLOAT
        int64_t integer;
        float number;
    };

    RuntimeOp(const OrtApi& api, const OrtKernelInfo* info, const char* name, const char* domain, int version, int inputs,
              const std::vector<Attribute>& attributes = {});

    void operator()(const OrtKernelContext* context, const std::vector<const OrtValue*>& in, OrtValue* out) const;

private:
    const OrtApi& api_;
    std::unique_ptr<OrtOp, void (*)(OrtOp*)> op_;
};

using RuntimeMemory = std::unique_ptr<OrtMemoryInfo, void (*)(OrtMemoryInfo*)>;

RuntimeMemory cpu_memory(const OrtApi& api);

}  // namespace vitprune
