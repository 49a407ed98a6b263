// SPDX-License-Identifier: Apache-2.0
//
// The table that ONNX Runtime calls an operator on the CPU through, made from what the operator is.
#pragma once

#include <cstddef>

#include "onnxruntime/api.h"

namespace vitprune {

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kHalf = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr ONNXTensorElementDataType kBfloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
constexpr ONNXTensorElementDataType kAny = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;  // any type
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ONNXTensorElementDataType kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr ONNXTensorElementDataType kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;

// Inputs or outputs of an operator: their types in order; the first `required` of them must be there.
struct Signature {
    const ONNXTensorElementDataType* types;
    size_t count;
    size_t required;
};

template <size_t Count>
constexpr Signature signature(const ONNXTensorElementDataType (&types)[Count], size_t required = Count) {
    return {types, Count, required};
}

// Kernel: one node of a session. It has
//   static constexpr const char* kName;  static constexpr Signature kReads, kWrites;
//   Kernel(const OrtApi&, const OrtKernelInfo*), which reads and checks the attributes;
//   void compute(OrtKernelContext*) const.
// Both may throw; nothing does beyond the callbacks.
template <typename Kernel>
struct CpuOperator : OrtCustomOp {
    CpuOperator() : OrtCustomOp{} {
        version = kOrtApi;
        GetName = [](const OrtCustomOp*) { return Kernel::kName; };
        GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
        GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kReads.count; };
        GetInputType = [](const OrtCustomOp*, size_t index) { return Kernel::kReads.types[index]; };
        GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return characteristic(Kernel::kReads, index); };
        GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
        GetOutputTypeCount = [](const OrtCustomOp*) { return Kernel::kWrites.count; };
        GetOutputType = [](const OrtCustomOp*, size_t index) { return Kernel::kWrites.types[index]; };
        GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) { return characteristic(Kernel::kWrites, index); };
        CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
            return guarded(*api, [&] { *kernel = new Instance{*api, Kernel(*api, info)}; });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            const Instance& made = *static_cast<const Instance*>(kernel);
            return guarded(made.api, [&] { made.kernel.compute(context); });
        };
        KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
    }

private:
    struct Instance {
        const OrtApi& api;
        Kernel kernel;
    };

    static OrtCustomOpInputOutputCharacteristic characteristic(const Signature& all, size_t index) {
        return index < all.required ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    }
};

template <typename Kernel>
void add_operator(const OrtApi& api, OrtCustomOpDomain* domain) {
    static const CpuOperator<Kernel> one;  // lives as long as the process: sessions refer to it
    check(api.CustomOpDomain_Add(domain, &one));
}

}  // namespace vitprune
