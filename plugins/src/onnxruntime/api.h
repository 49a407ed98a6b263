// SPDX-License-Identifier: Apache-2.0
//
// The little of ONNX Runtime's C interface that the operators need, with statuses turned into exceptions.
#pragma once

#include <onnxruntime_c_api.h>

#include <exception>
#include <string>
#include <vector>

#include "parameters.h"
#include "typed.h"

namespace vitprune {

// Interface version asked of the runtime: the first whose callbacks can report errors (ONNX Runtime 1.16).
constexpr uint32_t kOrtApi = 16;

struct OrtFailure {
    OrtStatus* status;
};

inline void check(OrtStatus* status) {
    if (status != nullptr) throw OrtFailure{status};
}

[[noreturn]] void fail(const OrtApi& api, OrtErrorCode code, const std::string& message);

// Throws unless a status of this library is VP_OK.
void check_own(const OrtApi& api, int32_t status);

struct TensorView {
    const void* data;
    ONNXTensorElementDataType type;
    std::vector<int64_t> dims;
};

TensorView input_tensor(const OrtApi& api, OrtKernelContext* context, size_t index);

// The inputs of a node, of which some may be absent.
class Inputs {
public:
    Inputs(const OrtApi& api, OrtKernelContext* context);

    bool has(size_t index) const;

    // Shape of an input, empty where it is absent.
    std::vector<int64_t> dims(size_t index) const;

    // Data of an input of this shape, null where it is absent; throws where it has another shape.
    template <typename Value>
    const Value* take(size_t index, const std::vector<int64_t>& shape, const char* what) const {
        return static_cast<const Value*>(data(index, shape, what));
    }

    // The same of float32, float16 or bfloat16.
    Typed typed(size_t index, const std::vector<int64_t>& shape, const char* what) const;

private:
    const void* data(size_t index, const std::vector<int64_t>& shape, const char* what) const;

    const OrtApi& api_;
    OrtKernelContext* context_;
    size_t count_ = 0;
};

// VpDtype of an element type; throws for others.
int32_t dtype_of(const OrtApi& api, ONNXTensorElementDataType type);

// An output of this shape, null where the node has none.
void* output_tensor(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims);

template <typename Value>
Value* give(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims) {
    return static_cast<Value*>(output_tensor(api, context, index, dims));
}

// Attributes that a node must have.
int64_t integer_of(const OrtApi& api, const OrtKernelInfo* info, const char* name);
float number_of(const OrtApi& api, const OrtKernelInfo* info, const char* name);
std::string text_of(const OrtApi& api, const OrtKernelInfo* info, const char* name);

// Attributes of a node, checked. Absent ones have the default of the specification; `fused` reads the score part too.
void read_attributes(const OrtApi& api, const OrtKernelInfo* info, bool fused, SampleParameters& sample, ScoreParameters& score);

// Runs a callback that may throw and returns what ONNX Runtime wants: a status, null on success.
template <typename Callback>
OrtStatus* guarded(const OrtApi& api, Callback callback) noexcept {
    try {
        callback();
        return nullptr;
    } catch (const OrtFailure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return api.CreateStatus(ORT_FAIL, error.what());
    }
}

}  // namespace vitprune
