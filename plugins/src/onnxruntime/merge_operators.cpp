// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/merge_operators.h"

#include <algorithm>
#include <numeric>

#include "host/merging.h"

namespace vitprune {
namespace {

// Attributes of a node, both operators together.
struct MergeKernel {
    const OrtApi& api;
    bool ward;
    int64_t prefix = 0;
    int64_t most = 0;    // largest number of slots that stay, 0: no bound
    int64_t padded = 0;  // K = most
    int64_t loses = 0;   // a bound may lose rows, and their patches have no row then
    int64_t proportional = 1;
    int64_t heads = 0;   // of the query and the keys, where there are any
    float floor = 0.0f;  // no row of the metric counts as shorter
    WardParameters wards;
    PairParameters pairs;
};

struct MergeOperator : OrtCustomOp {
    MergeOperator(const char* name, bool ward);

    const char* name;
    bool ward;
};

const MergeOperator& self(const OrtCustomOp* op) { return *static_cast<const MergeOperator*>(op); }

int64_t integer(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    int64_t value = 0;
    check(api.KernelInfoGetAttribute_int64(info, name, &value));
    return value;
}

float number(const OrtApi& api, const OrtKernelInfo* info, const char* name) {
    float value = 0.0f;
    check(api.KernelInfoGetAttribute_float(info, name, &value));
    return value;
}

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, [&] {
        MergeKernel made{*api, self(op).ward, 0, 0, 0, 0, 1, 0, 0.0f, {}, {}};
        made.prefix = integer(*api, info, "prefix");
        made.most = integer(*api, info, "most");
        made.padded = integer(*api, info, "padded");
        made.loses = integer(*api, info, "loses");
        made.proportional = integer(*api, info, "proportional");
        if (made.ward) {
            made.heads = integer(*api, info, "heads");
            made.wards.limit = number(*api, info, "limit");
            made.wards.pairs = integer(*api, info, "pairs");
            made.wards.rounds = integer(*api, info, "rounds");
            made.wards.power = number(*api, info, "power");
            made.wards.everyone = number(*api, info, "everyone");
            made.wards.share = number(*api, info, "share");
            made.wards.most = made.most;
        } else {
            made.pairs.pairs = integer(*api, info, "pairs");
            made.pairs.by_threshold = integer(*api, info, "by_threshold") != 0;
            made.pairs.threshold = number(*api, info, "threshold");
            made.pairs.most = made.most;
            made.floor = number(*api, info, "floor");
        }
        const bool sane = made.prefix >= 0 && made.most >= 0 && (made.padded == 0 || made.most > 0) && made.wards.rounds >= 0 &&
                          made.heads >= 0;
        if (!sane || (!made.ward && made.pairs.pairs < 0)) fail(*api, ORT_INVALID_ARGUMENT, "an attribute is negative");
        *kernel = new MergeKernel(made);
    });
}

// An optional input: null where it is absent.
template <typename Value>
const Value* optional(const OrtApi& api, OrtKernelContext* context, size_t index, const std::vector<int64_t>& dims, const char* what) {
    size_t count = 0;
    check(api.KernelContext_GetInputCount(context, &count));
    const OrtValue* value = nullptr;
    if (index < count) check(api.KernelContext_GetInput(context, index, &value));
    if (value == nullptr) return nullptr;
    const TensorView view = input_tensor(api, context, index);
    if (!dims.empty() && view.dims != dims) fail(api, ORT_INVALID_ARGUMENT, std::string(what) + " has a wrong shape");
    return static_cast<const Value*>(view.data);
}

// The images of a batch, checked.
std::vector<MergeImage> images_of(const MergeKernel& kernel, OrtKernelContext* context, size_t first) {
    const OrtApi& api = kernel.api;
    const TensorView x = input_tensor(api, context, 0);
    if (x.dims.size() != 3 || x.dims[1] <= kernel.prefix) fail(api, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
    const int64_t batch = x.dims[0], tokens = x.dims[1], patches = tokens - kernel.prefix;
    const float* size = optional<float>(api, context, first, {batch, tokens}, "size");
    const int64_t* patch = optional<int64_t>(api, context, first + 1, {batch, patches}, "patch");
    const uint8_t* valid = optional<uint8_t>(api, context, first + 2, {batch, patches}, "valid");
    const int64_t* group = optional<int64_t>(api, context, first + 3, {}, "group");
    int64_t originals = patches;
    if (group != nullptr) {
        const std::vector<int64_t> dims = input_tensor(api, context, first + 3).dims;
        if (dims.size() != 2 || dims[0] != batch) fail(api, ORT_INVALID_ARGUMENT, "group must be [batch, patches]");
        originals = dims[1];
        if (patch == nullptr && originals < patches) fail(api, ORT_INVALID_ARGUMENT, "group has fewer patches than there are slots");
    }
    for (int64_t at = 0; patch != nullptr && group != nullptr && at < batch * patches; ++at) {
        if (patch[at] < 0 || patch[at] >= originals) fail(api, ORT_INVALID_ARGUMENT, "patch holds a number that is no patch");
    }
    for (int64_t at = 0; group != nullptr && at < batch * originals; ++at) {
        if (group[at] < -1 || group[at] >= originals) fail(api, ORT_INVALID_ARGUMENT, "group holds a number that is no patch");
    }
    std::vector<MergeImage> images;
    for (int64_t b = 0; b < batch; ++b) {
        images.push_back({static_cast<const float*>(x.data) + b * tokens * x.dims[2],
                          size == nullptr ? nullptr : size + b * tokens + kernel.prefix,
                          patch == nullptr ? nullptr : patch + b * patches, valid == nullptr ? nullptr : valid + b * patches,
                          group == nullptr ? nullptr : group + b * originals, kernel.prefix, patches, x.dims[2], originals});
    }
    return images;
}

void write(const MergeKernel& kernel, OrtKernelContext* context, const std::vector<MergeImage>& images,
           const std::vector<Merging>& merged) {
    const OrtApi& api = kernel.api;
    const int64_t batch = static_cast<int64_t>(images.size()), width = images[0].width, originals = images[0].originals;
    int64_t count = kernel.padded ? kernel.most : 1;
    for (const Merging& one : merged) {
        if (kernel.padded && static_cast<int64_t>(one.kept.size()) > count) fail(api, ORT_FAIL, "more rows stay than there is room");
        count = std::max(count, static_cast<int64_t>(one.kept.size()));
    }
    const int64_t tokens = kernel.prefix + count;
    float* rows = static_cast<float*>(output_tensor(api, context, 0, {batch, tokens, width}));
    float* size = static_cast<float*>(output_tensor(api, context, 1, {batch, tokens}));
    float* bias = static_cast<float*>(output_tensor(api, context, 2, {batch, tokens}));
    int64_t* index = static_cast<int64_t*>(output_tensor(api, context, 3, {batch, count}));
    uint8_t* keep = static_cast<uint8_t*>(output_tensor(api, context, 4, {batch, count}));
    float* mask = static_cast<float*>(output_tensor(api, context, 5, {batch, 1, tokens, tokens}));  // null where nobody reads it
    int64_t* group = nullptr;
    if (images[0].group != nullptr) group = static_cast<int64_t*>(output_tensor(api, context, 6, {batch, originals}));
    for (int64_t b = 0; b < batch; ++b) {
        const MergeOutput out{rows + b * tokens * width, size + b * tokens, bias + b * tokens, index + b * count, keep + b * count,
                              group == nullptr ? nullptr : group + b * originals, count, kernel.proportional != 0};
        write_merged(images[b], merged[b], kernel.ward ? Mean::kKeptNorm : Mean::kSizes, kernel.loses != 0, out);
        if (mask != nullptr) write_mask(out, kernel.prefix, mask + b * tokens * tokens);
    }
}

// What the first tokens of a batch ask, checked; none where the node has no query.
std::vector<Asking> asked(const MergeKernel& kernel, OrtKernelContext* context, const std::vector<MergeImage>& images) {
    const OrtApi& api = kernel.api;
    const float* query = optional<float>(api, context, 7, {}, "query");
    if (query == nullptr || images.empty()) return {};
    const int64_t batch = static_cast<int64_t>(images.size()), tokens = kernel.prefix + images[0].patches;
    const std::vector<int64_t> dims = input_tensor(api, context, 7).dims;
    const bool sane = kernel.heads > 0 && kernel.prefix > 0 && dims.size() == 3 && dims[0] == batch && dims[1] == tokens &&
                      dims[2] % std::max<int64_t>(kernel.heads, 1) == 0;
    if (!sane) fail(api, ORT_INVALID_ARGUMENT, "query must be [batch, tokens, heads * depth], with a prefix");
    const float* key = optional<float>(api, context, 8, dims, "key");
    if (key == nullptr) fail(api, ORT_INVALID_ARGUMENT, "a query needs keys");
    const float* bias = optional<float>(api, context, 9, {batch, tokens}, "bias");
    std::vector<Asking> found;
    for (int64_t b = 0; b < batch; ++b) {
        const int64_t first = b * tokens * dims[2];
        found.push_back({query + first, key + first, bias == nullptr ? nullptr : bias + b * tokens, tokens, dims[2], kernel.heads});
    }
    return found;
}

void compute_ward(const MergeKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const std::vector<MergeImage> images = images_of(kernel, context, 3);
    const std::vector<Asking> asking = asked(kernel, context, images);
    const TensorView gram = input_tensor(api, context, 1);
    const int64_t batch = static_cast<int64_t>(images.size()), patches = images.empty() ? 0 : images[0].patches;
    if (gram.dims != std::vector<int64_t>{batch, patches, patches}) fail(api, ORT_INVALID_ARGUMENT, "gram must be [batch, patches, patches]");
    const float* received = optional<float>(api, context, 2, {}, "attention");
    int64_t heads = 1, first = 0, rows = patches;
    if (received != nullptr) {  // of all tokens and heads, or of the patches
        const std::vector<int64_t> dims = input_tensor(api, context, 2).dims;
        const bool all = dims.size() == 3;
        if (all) heads = dims[2], first = kernel.prefix, rows = patches + kernel.prefix;
        const std::vector<int64_t> wanted = all ? std::vector<int64_t>{batch, rows, heads} : std::vector<int64_t>{batch, patches};
        if (dims != wanted) fail(api, ORT_INVALID_ARGUMENT, "attention must be [batch, tokens, heads] or [batch, patches]");
    } else if (kernel.wards.power != 0.0f && asking.empty()) {
        fail(api, ORT_INVALID_ARGUMENT, "a power of the importance needs attention");
    }
    std::vector<Merging> merged;
    for (int64_t b = 0; b < batch; ++b) {
        std::vector<float> own;
        Attention attention{received == nullptr ? nullptr : received + (b * rows + first) * heads, heads};
        if (!asking.empty()) {
            own = cls_attention(asking[b]);
            attention = {own.data() + kernel.prefix, 1};
        }
        merged.push_back(
            ward_merging(kernel.wards, images[b], static_cast<const float*>(gram.data) + b * patches * patches, attention));
    }
    if (!merged.empty()) write(kernel, context, images, merged);
}

void compute_pairs(const MergeKernel& kernel, OrtKernelContext* context) {
    const OrtApi& api = kernel.api;
    const std::vector<MergeImage> images = images_of(kernel, context, 3);
    const TensorView products = input_tensor(api, context, 1), metric = input_tensor(api, context, 2);
    const int64_t batch = static_cast<int64_t>(images.size()), patches = images.empty() ? 0 : images[0].patches;
    const int64_t odd = kernel.prefix % 2, members_a = (patches - odd + 1) / 2, members_b = patches - members_a;
    if (products.dims != std::vector<int64_t>{batch, members_a, members_b} || members_b == 0) {
        fail(api, ORT_INVALID_ARGUMENT, "products must be [batch, even patch rows, odd patch rows]");
    }
    const int64_t tokens = kernel.prefix + patches;
    if (metric.dims.size() != 3 || metric.dims[0] != batch || metric.dims[1] != tokens) {
        fail(api, ORT_INVALID_ARGUMENT, "metric must be [batch, tokens, depth]");
    }
    const int64_t depth = metric.dims[2];
    std::vector<Merging> merged;
    for (int64_t b = 0; b < batch; ++b) {
        merged.push_back(pair_merging(kernel.pairs, images[b], static_cast<const float*>(products.data) + b * members_a * members_b,
                                      static_cast<const float*>(metric.data) + (b * tokens + kernel.prefix) * depth, depth,
                                      kernel.floor));
    }
    if (!merged.empty()) write(kernel, context, images, merged);
}

OrtStatus* compute_kernel(void* kernel, OrtKernelContext* context) {
    const MergeKernel& made = *static_cast<const MergeKernel*>(kernel);
    return guarded(made.api, [&] { made.ward ? compute_ward(made, context) : compute_pairs(made, context); });
}

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ONNXTensorElementDataType kBool = ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kInt64, kBool, kInt64, kFloat, kFloat, kFloat};
constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool, kFloat, kInt64};

MergeOperator::MergeOperator(const char* name_, bool ward_) : OrtCustomOp{}, name(name_), ward(ward_) {
    version = kOrtApi;
    GetName = [](const OrtCustomOp* op) { return self(op).name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp* op) -> size_t { return self(op).ward ? 10 : 7; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return kInputs[index]; };
    GetInputCharacteristic = [](const OrtCustomOp* op, size_t index) {  // attention may be absent, a metric not
        return index < (self(op).ward ? 2u : 3u) ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 7; };
    GetOutputType = [](const OrtCustomOp*, size_t index) { return kOutputs[index]; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) { return index < 5 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL; };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = compute_kernel;
    KernelDestroy = [](void* kernel) { delete static_cast<MergeKernel*>(kernel); };
}

struct SumsKernel {
    const OrtApi& api;
    int64_t prefix, sums;
};

// Rows behind the prefix as sums of their channels with signs.
struct SumsOperator : OrtCustomOp {
    SumsOperator() : OrtCustomOp{} {
        version = kOrtApi;
        GetName = [](const OrtCustomOp*) { return "SignedSums"; };
        GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
        GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 2; };
        GetInputType = [](const OrtCustomOp*, size_t) { return kFloat; };
        GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
        GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
        GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat; };
        GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
            return guarded(*api, [&] {
                const SumsKernel made{*api, integer(*api, info, "prefix"), integer(*api, info, "sums")};
                if (made.prefix < 0 || made.sums < 1) fail(*api, ORT_INVALID_ARGUMENT, "an attribute is negative");
                *kernel = new SumsKernel(made);
            });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            const SumsKernel& made = *static_cast<const SumsKernel*>(kernel);
            return guarded(made.api, [&] { compute(made, context); });
        };
        KernelDestroy = [](void* kernel) { delete static_cast<SumsKernel*>(kernel); };
    }

    static void compute(const SumsKernel& kernel, OrtKernelContext* context) {
        const TensorView x = input_tensor(kernel.api, context, 0), signs = input_tensor(kernel.api, context, 1);
        if (x.dims.size() != 3 || x.dims[1] < kernel.prefix || signs.dims != std::vector<int64_t>{x.dims[2]}) {
            fail(kernel.api, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width], with a sign for every channel");
        }
        const int64_t batch = x.dims[0], patches = x.dims[1] - kernel.prefix, width = x.dims[2];
        float* out = static_cast<float*>(output_tensor(kernel.api, context, 0, {batch, patches, kernel.sums}));
        for (int64_t b = 0; b < batch; ++b) {
            const float* rows = static_cast<const float*>(x.data) + (b * x.dims[1] + kernel.prefix) * width;
            signed_sums(rows, patches, width, static_cast<const float*>(signs.data), kernel.sums, out + b * patches * kernel.sums);
        }
    }
};

}  // namespace

void add_merge_operators(const OrtApi& api, OrtCustomOpDomain* domain) {
    static const MergeOperator ward("WardMerge", true);  // lives as long as the process: sessions refer to it
    static const MergeOperator pairs("PairMerge", false);
    static const SumsOperator sums;
    check(api.CustomOpDomain_Add(domain, &ward));
    check(api.CustomOpDomain_Add(domain, &pairs));
    check(api.CustomOpDomain_Add(domain, &sums));
}

}  // namespace vitprune
