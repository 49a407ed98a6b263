// SPDX-License-Identifier: Apache-2.0
//
// Attributes, inputs and outputs of the merging operators, checked; the same for the CPU and for CUDA.
#pragma once

#include <array>

#include "merge_site.h"
#include "onnxruntime/cpu_operator.h"

namespace vitprune {

// In the order of merge_operators.h, by kind: what an operator is called, what it reads and what it writes.
template <MergeKind kKind>
struct MergeForm;

template <>
struct MergeForm<MergeKind::kPair> {
    static constexpr const char* kName = "PairMerge";
    static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt64, kBool, kInt64};
    static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool, kInt64};
    static constexpr size_t kRequired = 3;
};

template <>
struct MergeForm<MergeKind::kWard> {
    static constexpr const char* kName = "WardMerge";
    static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt64, kBool, kInt64, kFloat, kFloat, kFloat};
    static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool, kInt64};
    static constexpr size_t kRequired = 2;  // attention may be absent
};

template <>
struct MergeForm<MergeKind::kSampled> {
    static constexpr const char* kName = "SampledMerge";
    static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat,
                                                            kFloat, kInt64, kBool, kInt64, kFloat};
    static constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool,
                                                             kInt64, kInt64, kInt64, kInt64, kFloat};
    static constexpr size_t kRequired = 2;
};

// Attributes of a node.
struct MergeNode {
    MergeNode(const OrtApi& api, const OrtKernelInfo* info, MergeKind kind);

    MergeParameters parameters;
    int64_t heads = 0;  // of WardMerge's query and keys, where there are any
};

struct MergeTensors {
    MergeTensors(const OrtApi& api, OrtKernelContext* context, const MergeNode& node);

    MergeInputs in{};
    MergeShape shape{};
};

// Refuses numbers in patch and group that are no patches; on host memory.
void check_numbers(const OrtApi& api, const MergeTensors& tensors);

// What a node writes: the outputs of a site and the shape of the rows, null where nobody asks.
struct MergeResults {
    MergeOutputs out{};
    int64_t* shape = nullptr;
    std::array<int64_t, 3> dims{};
};

// Allocates it for K = count.
MergeResults merge_results(const OrtApi& api, OrtKernelContext* context, MergeKind kind, const MergeTensors& tensors, int64_t count);

}  // namespace vitprune
