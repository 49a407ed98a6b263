// SPDX-License-Identifier: Apache-2.0
#include "onnxruntime/site_tensors.h"

namespace vitprune {
namespace {

enum Input { kX, kValid, kQuery, kKey, kValue, kScore, kH, kPatch, kTheta };
enum Output { kRows, kRows2, kIndex, kKeep, kPatchOut, kKept, kMask, kScoreKept, kShape, kScoreOut };

using Dims = std::vector<int64_t>;

}  // namespace

SiteParameters read_site(const OrtApi& api, const OrtKernelInfo* info) {
    SampleParameters sample;
    ScoreParameters unused;
    read_attributes(api, info, false, sample, unused);
    const std::string form = text_of(api, info, "form"), combine = text_of(api, info, "combine");
    VpPruneSiteAttributes attributes{};
    attributes.sample = {mode_name(sample.mode), sample.samples, sample.threshold, sample.capacity, sample.expected, sample.padded};
    attributes.form = form.c_str();
    attributes.combine = combine.c_str();
    attributes.heads = integer_of(api, info, "heads");
    attributes.prefix_tokens = integer_of(api, info, "prefix_tokens");
    attributes.originals = integer_of(api, info, "originals");
    SiteParameters parameters;
    check_own(api, check_site(&attributes, parameters));
    return parameters;
}

SiteTensors::SiteTensors(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters) {
    const Inputs reader(api, context);
    const Dims x = reader.dims(kX);
    if (x.size() != 3 || x[1] <= parameters.prefix) fail(api, ORT_INVALID_ARGUMENT, "x must be [batch, tokens, width]");
    const Dims second = reader.dims(kH), key = reader.dims(kKey);
    const int64_t batch = x[0], patches = x[1] - parameters.prefix;
    const int64_t width2 = second.size() == 3 ? second[2] : 0, row = key.size() == 3 ? key[2] : 0;
    if (row % parameters.heads != 0) fail(api, ORT_INVALID_ARGUMENT, "heads must divide the width of the keys");
    check_own(api, check_site_shape(parameters, {batch, patches, x[2], width2, row / parameters.heads}, shape));
    const Dims images{batch, patches}, rows{batch, x[1], row};
    Dims query{batch, row};
    if (reader.dims(kQuery).size() == 3) query = {batch, 1, row};
    in.x = reader.typed(kX, x, "x");
    in.h = reader.typed(kH, {batch, x[1], width2}, "h");
    in.query = reader.typed(kQuery, query, "query");
    in.key = reader.typed(kKey, rows, "key");
    in.value = reader.typed(kValue, rows, "value");
    in.score = reader.take<float>(kScore, images, "score");
    in.theta = reader.take<float>(kTheta, {}, "theta");
    in.valid = reader.take<uint8_t>(kValid, images, "valid");
    in.patch = reader.take<int64_t>(kPatch, images, "patch");
    check_own(api, check_site_inputs(parameters, in));
}

SiteResults site_results(const OrtApi& api, OrtKernelContext* context, const SiteParameters& parameters, const SiteShape& shape,
                         int64_t count) {
    const int64_t batch = shape.batch, rows = shape.prefix + count, more = parameters.combine != Combine::kNothing;
    SiteResults results;
    SiteOutputs& out = results.out;
    results.dims = {batch, rows + more, shape.width};
    out.count = count;
    out.rows = output_tensor(api, context, kRows, {batch, rows + more, shape.width});
    if (shape.width2 > 0) out.rows2 = output_tensor(api, context, kRows2, {batch * rows, shape.width2});
    out.index = give<int64_t>(api, context, kIndex, {batch, count});
    out.keep = give<uint8_t>(api, context, kKeep, {batch, count});
    out.patch = give<int64_t>(api, context, kPatchOut, {batch, count + more});
    out.kept = give<int64_t>(api, context, kKept, {batch, count});
    out.mask = give<int32_t>(api, context, kMask, {batch, rows + more});
    out.score_kept = give<float>(api, context, kScoreKept, {batch, count});
    results.shape = give<int64_t>(api, context, kShape, {3});
    results.score = give<float>(api, context, kScoreOut, {batch, shape.patches});
    return results;
}

}  // namespace vitprune
