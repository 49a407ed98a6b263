/* SPDX-License-Identifier: Apache-2.0
 *
 * C interface of libvitprune_plugin: the operators TokenSample and TokenScoreSample on plain pointers.
 *
 * The same library is a TensorRT plugin library and an ONNX Runtime custom operator library; vp_features() tells which
 * parts were built. Every function is thread safe, keeps no state between calls and never throws.
 *
 * Shapes: B images (>= 1), P patch tokens (1..16384), K kept tokens per image, H heads, N = prefix_tokens + P keys,
 * D head width. bool is one byte, 0 or 1. All tensors are dense and row major.
 */
#ifndef VITPRUNE_PLUGIN_H
#define VITPRUNE_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#define VP_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

#define VP_ABI_VERSION 4
#define VP_MAX_PATCHES 16384
#define VP_MAX_SAMPLES 65536

/* What a call returns; vp_status_string() has a sentence for each. */
enum VpStatus {
    VP_OK = 0,
    VP_NULL_POINTER = 1,
    VP_UNKNOWN_MODE = 2,
    VP_BAD_PATCHES = 3,
    VP_BAD_BATCH = 4,
    VP_BAD_NUM_SAMPLES = 5,
    VP_BAD_CAPACITY = 6,
    VP_BAD_EXPECTED = 7,
    VP_SMALL_WORKSPACE = 8,
    VP_UNKNOWN_FORM = 9,
    VP_UNKNOWN_DTYPE = 10,
    VP_BAD_HEADS = 11,
    VP_BAD_PREFIX = 12,
    VP_BAD_SCALE = 13,
    VP_OUT_OF_MEMORY = 14,
    VP_CUDA_ERROR = 15,
    VP_UNKNOWN_COMBINE = 16,
    VP_BAD_ENDS = 17,
    VP_UNKNOWN_KIND = 18,
    VP_BAD_MERGE = 19,
    VP_NO_ROOM = 20
};

/* Bits of vp_features(). */
enum VpFeature { VP_FEATURE_CUDA = 1, VP_FEATURE_TENSORRT = 2, VP_FEATURE_ONNXRUNTIME = 4 };

/* Element types. */
enum VpDtype { VP_FLOAT32 = 0, VP_FLOAT16 = 1, VP_BFLOAT16 = 2 };

/* Attributes of TokenSample.
 *   mode             "inverse_transform", "inverse_transform_official" or "threshold"
 *   num_samples      sampling points, 1..65536; not read in threshold mode
 *   threshold        a valid token is kept when its score is greater; read in threshold mode only
 *   capacity         largest number of tokens kept per image, 0 = no limit
 *   expected         typical kept count, a hint to builders, 0 = unknown
 *   pad_to_capacity  nonzero: K is min(capacity, P), or P without a capacity; zero: the largest count in the batch */
typedef struct VpTokenSampleAttributes {
    const char* mode;
    int64_t num_samples;
    float threshold;
    int64_t capacity;
    int64_t expected;
    int32_t pad_to_capacity;
} VpTokenSampleAttributes;

/* Attributes of the score part of TokenScoreSample.
 *   form           "paper": sum over heads of a_h[j] * |v_hj|; "official": (sum over heads of a_h[j]) * |v_j|
 *   scale          factor of query . key before the softmax, 0 = 1 / sqrt(D)
 *   prefix_tokens  rows before the first patch in key and value (class token, registers), >= 0 */
typedef struct VpTokenScoreAttributes {
    const char* form;
    float scale;
    int64_t prefix_tokens;
} VpTokenScoreAttributes;

/* Attributes of PruneSite: a dropping site as one operator, from the class token's attention to the rows that stay.
 *   sample         who stays, by the score; "threshold" with the lowest float and a capacity is a ranking
 *   form           where the score comes from: "given", or the class token's attention a_h over heads: "per_head" sum a_h |v_h|,
 *                  "pooled" (sum a_h) |v|, "sum", "mean", "head_share" sum a_h |v_h| / (sum |v_h| + 1e-8)
 *   combine        one more row behind those that stay: "nothing", "weighted" (sum of the others weighted by score), "mean"
 *   heads, prefix_tokens
 *   originals      patches of the dense model; rows with a number from here on are not listed as kept */
typedef struct VpPruneSiteAttributes {
    VpTokenSampleAttributes sample;
    const char* form;
    const char* combine;
    int64_t heads;
    int64_t prefix_tokens;
    int64_t originals;
} VpPruneSiteAttributes;

/* Tensors of PruneSite, all dense and row major; N = prefix_tokens + P, M = prefix_tokens + K. Null where a site has none.
 *   inputs   x [B,N,C], h [B,N,C2]; query [B,H*D] (scaled), key and value [B,N,H*D], each of the dtype in its *_type, 0 = float32; or
 *            score float [B,P];
 *            theta float scalar, subtracted from the score before it is compared; valid bool [B,P], null: all; patch int64 [B,P],
 *            null: 0, 1, ...
 *   outputs  rows [B,M,C] of x's dtype (with a combined row [B,M+1,C], summed in float32 and rounded once), rows2 [B*M,C2] of h's
 *            dtype, index int64 [B,K], keep bool [B,K],
 *            patch int64 [B,K] (combined: [B,K+1]), kept int64 [B,K], mask int32 [B,M] (combined: [B,M+1]), score_kept float
 *            [B,K], score_out float [B,P], bias float [B,M] (combined: [B,M+1]): 0 where mask is 1, else -1e4 */
typedef struct VpPruneSiteTensors {
    const void *x, *h, *query, *key, *value;
    const float *score, *theta;
    const uint8_t* valid;
    const int64_t* patch;
    void *rows, *rows2;
    int64_t* index;
    uint8_t* keep;
    int64_t *patch_out, *kept;
    int32_t* mask;
    float *score_kept, *score_out, *bias;
    int32_t x_type, h_type, query_type, key_type, value_type;
} VpPruneSiteTensors;

/* Sizes of PruneSite: B, P, C, C2 and D. */
typedef struct VpPruneSiteSizes {
    int64_t batch, patches, width, width2, head_width;
} VpPruneSiteSizes;

/* Attributes of a merging site: PairMerge, WardMerge or SampledMerge as one operator, from what decides who joins whom to the rows that go on.
 *   kind           "pair" (ToMe), "ward" (Ward merging), "sampled" (ATS whose dropped patches join kept ones)
 *   most           largest number of slots that stay, 0 = no bound; padded != 0: K = most
 *   loses          nonzero: a bound may lose rows, and patches of a lost one have no row (-1)
 *   proportional   nonzero: the bias holds log(size)
 *   floor          pair, sampled: no row of the metric counts as shorter
 *   pairs          pair: most members of A that leave; ward: pairs to merge in all rounds, -1 = as many as are below the limit
 *   by_threshold, threshold     pair: only members of A that are more similar than this leave, or as many as `most` demands
 *   limit, rounds               ward: damage below which a pair merges where pairs = -1; rounds of reciprocal pairs
 *   power, everyone, share      ward: mass = size * (attention * share / size * everyone) ^ power; power 0 reads no attention
 *   site           sampled: score and sampling; prefix_tokens and pad_to_capacity as here, combine "nothing" */
typedef struct VpMergeAttributes {
    const char* kind;
    int64_t prefix_tokens, most;
    int32_t padded, loses, proportional;
    float floor;
    int64_t pairs;
    int32_t by_threshold;
    float threshold, limit;
    int64_t rounds;
    float power, everyone, share;
    VpPruneSiteAttributes site;
} VpMergeAttributes;

/* Sizes of a merging site: B, P, C; heads H (ward: of query and key, or of attention, 0 = attention [B,P] or none; sampled: those of
 * the attributes); depth D (pair: of the metric; else of a head); originals P0, patches of the dense model, 0 without group. */
typedef struct VpMergeSizes {
    int64_t batch, patches, width, heads, depth, originals;
} VpMergeSizes;

/* Tensors of a merging site, all dense and row major; N = prefix_tokens + P, M = prefix_tokens + K. Null where a site has none.
 *   inputs   x float [B,N,C]
 *            pair: metric float [B,N,D], products float [B,A,A'] of its even and odd token rows without the prefix
 *            ward: gram float [B,P,P]; with a power attention float [B,N,H] or [B,P], or query and key float [B,N,H*D] (scaled; the
 *            first row asks) and bias float [B,N], added to the logits
 *            sampled: metric float [B,N,H*D]; query float [B,H*D], key and value float [B,N,H*D] and bias, or score float [B,P]
 *            all: size float [B,N], null: 1; patch int64 [B,P], null: 0, 1, ...; valid bool [B,P], null: all; group int64 [B,P0], the
 *            number of the row that stands for a patch of the dense model, -1: none
 *   outputs  rows float [B,M,C]; size_out, bias_out float [B,M]; index int64, keep bool, patch_out, kept int64 [B,K] (kept: -1 on
 *            pads); group_out int64 [B,P0]; score_out float [B,P] (sampled)
 * Numbers in patch and group outside of 0..P0-1 belong to no slot; a number in group goes on as it is. */
typedef struct VpMergeTensors {
    const float *x, *products, *metric, *gram, *attention, *query, *key, *value, *score, *bias, *size;
    const int64_t* patch;
    const uint8_t* valid;
    const int64_t* group;
    float *rows, *size_out, *bias_out;
    int64_t* index;
    uint8_t* keep;
    int64_t *group_out, *patch_out, *kept;
    float* score_out;
} VpMergeTensors;

VP_API int32_t vp_abi_version(void);
VP_API uint32_t vp_features(void);
/* JSON object: what the library was built with. */
VP_API const char* vp_build_info(void);
/* A sentence for a status; never null. */
VP_API const char* vp_status_string(int32_t status);

/* Largest possible K for P patches: allocate index and keep with B * this many elements. Writes *max_count.
 * Errors: VP_NULL_POINTER and those of the attributes and of P. */
VP_API int32_t vp_token_sample_max_count(const VpTokenSampleAttributes* attributes, int64_t patches, int64_t* max_count);

/* TokenSample on the host.
 *   score float32 [B,P], valid bool [B,P]
 *   index int64 and keep bool, room for B * max_count each; on return the first B*K elements are the row-major [B,K]
 *   count int64 scalar, K on return
 * Errors: VP_NULL_POINTER, VP_UNKNOWN_MODE, VP_BAD_PATCHES, VP_BAD_BATCH, VP_BAD_NUM_SAMPLES, VP_BAD_CAPACITY,
 * VP_BAD_EXPECTED, VP_OUT_OF_MEMORY. Outputs are untouched on error. */
VP_API int32_t vp_token_sample_cpu(const VpTokenSampleAttributes* attributes, const float* score, const uint8_t* valid,
                                   int64_t batch, int64_t patches, int64_t* index, uint8_t* keep, int64_t* count);

/* TokenScoreSample on the host.
 *   query dtype [B,H,D] (class token's row only), key and value dtype [B,H,N,D], valid bool [B,P]
 *   score float32 [B,P]; index, keep, count as above
 * Errors: those of vp_token_sample_cpu and VP_UNKNOWN_FORM, VP_UNKNOWN_DTYPE, VP_BAD_HEADS (H or D < 1),
 * VP_BAD_PREFIX, VP_BAD_SCALE. */
VP_API int32_t vp_token_score_sample_cpu(const VpTokenScoreAttributes* score_attributes,
                                         const VpTokenSampleAttributes* attributes, int32_t dtype, const void* query,
                                         const void* key, const void* value, const uint8_t* valid, int64_t batch,
                                         int64_t heads, int64_t patches, int64_t width, float* score, int64_t* index,
                                         uint8_t* keep, int64_t* count);

/* PruneSite on the host. Outputs have room for the largest K; on return they are laid out by *count = K.
 * Errors: those of vp_token_sample_cpu and VP_UNKNOWN_FORM, VP_UNKNOWN_COMBINE, VP_UNKNOWN_DTYPE, VP_BAD_HEADS, VP_BAD_PREFIX. */
VP_API int32_t vp_prune_site_cpu(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes,
                                 const VpPruneSiteTensors* tensors, int64_t* count);

/* Largest possible K of a merging site with P patches. */
VP_API int32_t vp_merge_max_count(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, int64_t* max_count);

/* A merging site on the host. Outputs have room for the largest K; on return they are laid out by *count = K.
 * Errors: VP_NULL_POINTER, VP_UNKNOWN_KIND, VP_BAD_MERGE (a negative number of pairs or rounds, or attributes of sampling and merging
 * that disagree), VP_BAD_PREFIX, VP_BAD_CAPACITY (most), VP_BAD_PATCHES (also P0), VP_BAD_BATCH, VP_BAD_HEADS, those of the site,
 * VP_NO_ROOM (padded, and more than `most` slots stay), VP_OUT_OF_MEMORY. */
VP_API int32_t vp_merge_cpu(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, const VpMergeTensors* tensors,
                            int64_t* count);

/* Attention of images whose rows lie behind each other; image b has the rows query_ends[b]..query_ends[b+1] of query and output, and
 * key_ends[b]..key_ends[b+1] of key and value. An image without keys gets zeros.
 *   query and output float32 [Tq,H*D], key and value float32 [Tk,H*D]; bias float32 [Tk], added to the logits of a key, or null
 *   query_ends and key_ends int64 [images+1], rising from 0; images as B; scale > 0: factor of query . key before the softmax
 * Errors: VP_NULL_POINTER, VP_BAD_BATCH, VP_BAD_HEADS, VP_BAD_SCALE, VP_BAD_ENDS, VP_OUT_OF_MEMORY. */
VP_API int32_t vp_packed_attention_cpu(const float* query, const float* key, const float* value, const float* bias,
                                       const int64_t* query_ends, const int64_t* key_ends, int64_t images, int64_t heads,
                                       int64_t width, float scale, float* output);

/* The functions below exist only when vp_features() has VP_FEATURE_CUDA. Every tensor and the workspace lie in
 * device memory; `stream` is a cudaStream_t. They only enqueue work: no allocation, no synchronisation, so they can be
 * captured in a CUDA graph. Further errors: VP_SMALL_WORKSPACE, VP_CUDA_ERROR (a launch was refused). */
VP_API int32_t vp_token_sample_workspace(int64_t batch, int64_t patches, size_t* bytes);

VP_API int32_t vp_token_sample_cuda(const VpTokenSampleAttributes* attributes, const float* score, const uint8_t* valid,
                                    int64_t batch, int64_t patches, void* workspace, size_t workspace_bytes, int64_t* index,
                                    uint8_t* keep, int64_t* count, void* stream);

VP_API int32_t vp_token_score_sample_workspace(int64_t batch, int64_t heads, int64_t patches, int64_t prefix_tokens,
                                               size_t* bytes);

VP_API int32_t vp_token_score_sample_cuda(const VpTokenScoreAttributes* score_attributes,
                                          const VpTokenSampleAttributes* attributes, int32_t dtype, const void* query,
                                          const void* key, const void* value, const uint8_t* valid, int64_t batch,
                                          int64_t heads, int64_t patches, int64_t width, void* workspace,
                                          size_t workspace_bytes, float* score, int64_t* index, uint8_t* keep,
                                          int64_t* count, void* stream);

/* PruneSite on device memory: two launches, after a memset of four bytes per image where the score is computed. `count` int64 scalar in
 * device memory. Not padded, K is the largest count of the batch, and outputs have room for the largest possible one. */
VP_API int32_t vp_prune_site_workspace(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes, size_t* bytes);

VP_API int32_t vp_prune_site_cuda(const VpPruneSiteAttributes* attributes, const VpPruneSiteSizes* sizes,
                                  const VpPruneSiteTensors* tensors, void* workspace, size_t workspace_bytes, int64_t* count,
                                  void* stream);

/* A merging site on device memory: two launches, after a memset of some bytes per image. `count` int64 scalar in device memory. Not
 * padded, K is the largest count of the batch, and outputs have room for the largest possible one; padded, slots beyond K are not written. */
VP_API int32_t vp_merge_workspace(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, size_t* bytes);

VP_API int32_t vp_merge_cuda(const VpMergeAttributes* attributes, const VpMergeSizes* sizes, const VpMergeTensors* tensors,
                             void* workspace, size_t workspace_bytes, int64_t* count, void* stream);

/* As vp_packed_attention_cpu, on tensors of any dtype (bias stays float32; sums are taken in float32) and D <= 128. The ends are read on
 * the device alone and not checked; `longest` is a bound on the queries of an image, 1..32768, that decides how many blocks start.
 * Further errors: VP_UNKNOWN_DTYPE, VP_BAD_PATCHES (longest). */
VP_API int32_t vp_packed_attention_cuda(int32_t dtype, const void* query, const void* key, const void* value, const float* bias,
                                        const int64_t* query_ends, const int64_t* key_ends, int64_t images, int64_t heads,
                                        int64_t width, int64_t longest, float scale, void* output, void* stream);

#ifdef __cplusplus
}
#endif
#endif
