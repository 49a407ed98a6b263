// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/sampled_merge_operator.h"

#include <algorithm>

#include "host/prune_site.h"
#include "host/sampled_merge.h"
#include "onnxruntime/merge_tensors.h"
#include "onnxruntime/pool.h"
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

enum Input { kX, kMetric, kQuery, kKey, kValue, kScore, kSize, kPatch, kValid, kGroup, kBias };
enum Output { kPatchOut = 7, kKept, kShape, kScoreOut };
constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kInt64, kBool, kInt64, kFloat};
constexpr ONNXTensorElementDataType kOutputs[] = {kFloat, kFloat, kFloat, kInt64, kBool, kFloat, kInt64, kInt64, kInt64, kInt64, kFloat};
using Dims = std::vector<int64_t>;

class SampledKernel : MergeKernel {
public:
    static constexpr const char* kName = "SampledMerge";
    static constexpr Signature kReads = signature(kInputs, 2), kWrites = signature(kOutputs, 5);

    SampledKernel(const OrtApi& api, const OrtKernelInfo* info)
        : MergeKernel(api, info), site_(read_site(api, info)), floor_(number_of(api, info, "floor")) {
        const bool alike = site_.prefix == prefix && site_.combine == Combine::kNothing && site_.sample.padded == padded;
        if (!alike) fail(api, ORT_INVALID_ARGUMENT, "the attributes of sampling and merging disagree");
    }

    void compute(OrtKernelContext* context) const {
        const std::vector<MergeImage> images = images_of(*this, context, kSize);
        if (images.empty()) fail(api, ORT_INVALID_ARGUMENT, "there is no image");
        SiteShape shape{};
        const SiteInputs in = inputs(context, images[0], shape);
        const Inputs reader(api, context);
        const Dims dims{shape.batch, shape.tokens(), static_cast<int64_t>(shape.heads) * shape.head_width};
        const float* metric = reader.take<float>(kMetric, dims, "metric");
        const ForEach each = pool_of(context);
        const SiteDecision decided = decide_site(site_, in, shape, each);
        std::vector<Merging> merged(images.size());
        each(images.size(), [&](size_t b) {
            const float* own = metric + (b * shape.tokens() + prefix) * dims[2];
            merged[b] = sampled_merging(images[b], decided.selection.rows[b], own, shape.heads, shape.head_width, floor_);
        });
        const int64_t count = write_batch(*this, context, images, merged, Mean::kSizes);
        write_numbers(context, images, merged, count);
        if (float* told = give<float>(api, context, kScoreOut, {shape.batch, shape.patches})) {
            std::copy_n(decided.score, static_cast<size_t>(shape.batch) * shape.patches, told);
        }
    }

private:
    SiteInputs inputs(OrtKernelContext* context, const MergeImage& image, SiteShape& shape) const {
        const Inputs reader(api, context);
        const Dims x = reader.dims(kX), metric = reader.dims(kMetric);
        if (metric.size() != 3 || metric[2] % site_.heads != 0) {
            fail(api, ORT_INVALID_ARGUMENT, "metric must be [batch, tokens, heads * depth]");
        }
        check_own(api, check_site_shape(site_, {x[0], image.patches, x[2], 0, metric[2] / site_.heads}, shape));
        const Dims rows{x[0], x[1], metric[2]}, images{x[0], image.patches};
        Dims query{x[0], metric[2]};
        if (reader.dims(kQuery).size() == 3) query = {x[0], 1, metric[2]};
        SiteInputs in{};
        in.x = reader.take<float>(kX, x, "x");
        in.query = reader.take<float>(kQuery, query, "query");
        in.key = reader.take<float>(kKey, rows, "key");
        in.value = reader.take<float>(kValue, rows, "value");
        in.score = reader.take<float>(kScore, images, "score");
        in.valid = reader.take<uint8_t>(kValid, images, "valid");
        in.bias = reader.take<float>(kBias, {x[0], x[1]}, "bias");
        check_own(api, check_site_inputs(site_, in));
        return in;
    }

    void write_numbers(OrtKernelContext* context, const std::vector<MergeImage>& images, const std::vector<Merging>& merged,
                       int64_t count) const {
        const int64_t batch = static_cast<int64_t>(images.size());
        int64_t* patch = give<int64_t>(api, context, kPatchOut, {batch, count});
        int64_t* kept = give<int64_t>(api, context, kKept, {batch, count});
        for (int64_t b = 0; b < batch; ++b) {
            for (int64_t k = 0; k < count; ++k) {
                const bool real = k < static_cast<int64_t>(merged[b].kept.size());
                const int64_t number = images[b].number(real ? merged[b].kept[k] : 0);
                if (patch != nullptr) patch[b * count + k] = number;
                if (kept != nullptr) kept[b * count + k] = real ? number : -1;
            }
        }
        if (int64_t* dims = give<int64_t>(api, context, kShape, {3})) {
            dims[0] = batch, dims[1] = prefix + count, dims[2] = images[0].width;
        }
    }

    SiteParameters site_;
    float floor_;
};

}  // namespace

void add_sampled_merge(const OrtApi& api, OrtCustomOpDomain* domain) { add_operator<SampledKernel>(api, domain); }

}  // namespace vitprune
