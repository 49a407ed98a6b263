// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/merge_tensors.h"

#include <algorithm>

namespace vitprune {

std::vector<MergeImage> images_of(const MergeKernel& kernel, OrtKernelContext* context, size_t first) {
    const OrtApi& api = kernel.api;
    const TensorView x = input_tensor(api, context, 0);
    if (x.dims.size() != 3 || x.dims[1] <= kernel.prefix) fail(api, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
    const Inputs in(api, context);
    const int64_t batch = x.dims[0], tokens = x.dims[1], patches = tokens - kernel.prefix;
    const float* size = in.take<float>(first, {batch, tokens}, "size");
    const int64_t* patch = in.take<int64_t>(first + 1, {batch, patches}, "patch");
    const uint8_t* valid = in.take<uint8_t>(first + 2, {batch, patches}, "valid");
    const std::vector<int64_t> grouped = in.dims(first + 3);
    const int64_t* group = in.take<int64_t>(first + 3, grouped, "group");
    int64_t originals = patches;
    if (group != nullptr) {
        if (grouped.size() != 2 || grouped[0] != batch) fail(api, ORT_INVALID_ARGUMENT, "group must be [batch, patches]");
        originals = grouped[1];
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

int64_t write_batch(const MergeKernel& kernel, OrtKernelContext* context, const std::vector<MergeImage>& images,
                    const std::vector<Merging>& merged, Mean mean) {
    const OrtApi& api = kernel.api;
    const int64_t batch = static_cast<int64_t>(images.size()), width = images[0].width, originals = images[0].originals;
    int64_t count = kernel.padded ? kernel.most : 1;
    for (const Merging& one : merged) {
        if (kernel.padded && static_cast<int64_t>(one.kept.size()) > count) fail(api, ORT_FAIL, "more rows stay than there is room");
        count = std::max(count, static_cast<int64_t>(one.kept.size()));
    }
    const int64_t tokens = kernel.prefix + count;
    float* rows = give<float>(api, context, 0, {batch, tokens, width});
    float* size = give<float>(api, context, 1, {batch, tokens});
    float* bias = give<float>(api, context, 2, {batch, tokens});
    int64_t* index = give<int64_t>(api, context, 3, {batch, count});
    uint8_t* keep = give<uint8_t>(api, context, 4, {batch, count});
    float* mask = give<float>(api, context, 5, {batch, 1, tokens, tokens});  // null where nobody reads it
    int64_t* group = nullptr;
    if (images[0].group != nullptr) group = give<int64_t>(api, context, 6, {batch, originals});
    for (int64_t b = 0; b < batch; ++b) {
        const MergeOutput out{rows + b * tokens * width, size + b * tokens, bias + b * tokens, index + b * count, keep + b * count,
                              group == nullptr ? nullptr : group + b * originals, count, kernel.proportional};
        write_merged(images[b], merged[b], mean, kernel.loses, out);
        if (mask != nullptr) write_mask(out, kernel.prefix, mask + b * tokens * tokens);
    }
    return count;
}

}  // namespace vitprune
