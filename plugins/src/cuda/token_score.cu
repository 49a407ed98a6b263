// SPDX-License-Identifier: Apache-2.0
//
// Score and selection in one launch: one block per image and head computes that head's attention and value norms; the
// block that finishes last for its image adds the heads in order and samples.
#include "block_launch.cuh"
#include "cuda/launch.h"
#include "cuda/score.cuh"
#include "cuda/workspace.cuh"
#include "element.h"

namespace vitprune {
namespace {

constexpr int kThreads = kScoreThreads;

// Tickets int32 [B], logits then attention float [B,H,N], squared value norms float [B,H,P], then the sampling part.
struct ScoreWorkspace {
    unsigned int* tickets;
    float* attention;
    float* squares;
    void* sample;

    __host__ __device__ static size_t ticket_bytes(const ScoreShape& s) { return aligned(s.batch * sizeof(unsigned int)); }
    __host__ __device__ static size_t row_bytes(const ScoreShape& s, int32_t columns) {
        return aligned(static_cast<size_t>(s.batch) * s.heads * columns * sizeof(float));
    }

    __host__ __device__ ScoreWorkspace(void* base, const ScoreShape& shape) {
        char* bytes = static_cast<char*>(base);
        tickets = reinterpret_cast<unsigned int*>(bytes);
        bytes += ticket_bytes(shape);
        attention = reinterpret_cast<float*>(bytes);
        bytes += row_bytes(shape, shape.keys());
        squares = reinterpret_cast<float*>(bytes);
        sample = bytes + row_bytes(shape, shape.patches);
    }

    static size_t bytes(const ScoreShape& shape) {
        return ticket_bytes(shape) + row_bytes(shape, shape.keys()) + row_bytes(shape, shape.patches) +
               sample_workspace(shape.batch, shape.patches);
    }
};

// Attention and squared value norms of one head.
template <typename Element>
__device__ void score_head(const Element* query, const Element* key, const Element* value, const uint8_t* valid,
                           const ScoreShape& shape, float scale, float* attention, float* squares, float* partial) {
    const int32_t warps = kThreads / kWarp;
    for (int32_t n = threadIdx.x / kWarp; n < shape.keys(); n += warps) {
        const int32_t patch = n - shape.prefix;
        const size_t row = static_cast<size_t>(n) * shape.width;
        const float logit = mul(scale, warp_dot(query, key + row, shape.width));
        const float square = patch < 0 ? 0.0f : warp_dot(value + row, value + row, shape.width);
        if (threadIdx.x % kWarp != 0) continue;
        attention[n] = patch >= 0 && !valid[patch] ? -INFINITY : logit;
        if (patch >= 0) squares[patch] = square;
    }
    __syncthreads();
    softmax(attention, shape.keys(), partial);
}

// Adds the heads in order. __ldcg: the parts come from other blocks and must not be read from this one's L1 cache.
__device__ void add_heads(bool pooled, const float* attention, const float* squares, const uint8_t* valid,
                          const ScoreShape& shape, float* score) {
    for (int32_t j = threadIdx.x; j < shape.patches; j += kThreads) {
        float sum = 0.0f;
        float square_sum = 0.0f;
        for (int32_t h = 0; h < shape.heads; ++h) {
            const float part = __ldcg(attention + static_cast<size_t>(h) * shape.keys() + shape.prefix + j);
            const float square = __ldcg(squares + static_cast<size_t>(h) * shape.patches + j);
            sum = add(sum, pooled ? part : mul(part, square_root(square)));
            square_sum = add(square_sum, square);
        }
        if (pooled) sum = mul(sum, square_root(square_sum));
        score[j] = valid[j] ? sum : 0.0f;
    }
    __syncthreads();
}

struct ScoreShared {
    BlockShared block;
    float partial[kThreads];
    bool last;
};

template <typename Element>
struct ScoreProgram {
    using Shared = ScoreShared;
    static constexpr int kMaxThreads = kThreads;
    bool pooled;
    float scale;
    SampleParameters parameters;
    const Element* query;
    const Element* key;
    const Element* value;
    const uint8_t* valid;
    ScoreShape shape;
    int32_t limit;
    void* workspace;
    float* score;
    Outputs outputs;

    __device__ void operator()(char* dynamic, Shared& shared) const {
        const int32_t b = static_cast<int32_t>(blockIdx.x) / shape.heads;
        const size_t row = blockIdx.x;
        const size_t head = row * shape.keys() * shape.width;
        const ScoreWorkspace layout(workspace, shape);
        const uint8_t* image_valid = valid + static_cast<size_t>(b) * shape.patches;
        score_head(query + row * shape.width, key + head, value + head, image_valid, shape, scale,
                   layout.attention + row * shape.keys(), layout.squares + row * shape.patches, shared.partial);
        if (!is_last_head(layout.tickets + b, shared)) return;
        const size_t first = static_cast<size_t>(b) * shape.heads;
        float* image_score = score + static_cast<size_t>(b) * shape.patches;
        add_heads(pooled, layout.attention + first * shape.keys(), layout.squares + first * shape.patches, image_valid, shape,
                  image_score);
        const SampleWorkspace sampling(layout.sample, shape.batch, shape.patches);
        const ImageScratch scratch = sampling.image(b, shape.patches, dynamic);
        const int32_t kept =
            select_image(parameters, image_score, image_valid, shape.patches, limit, scratch, shared.block);
        finish_image(outputs, b, kept, sampling, scratch, shape.patches, shared.block);
    }

    // Draws a ticket; true in the block that draws the image's last one, after which all heads' results are visible.
    __device__ bool is_last_head(unsigned int* ticket, Shared& shared) const {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) shared.last = atomicAdd(ticket, 1u) + 1 == static_cast<unsigned int>(shape.heads);
        __syncthreads();
        __threadfence();
        return shared.last;
    }
};

template <typename Element>
cudaError_t launch(const ScoreParameters& score_parameters, const SampleParameters& parameters, const void* query,
                   const void* key, const void* value, const uint8_t* valid, float* score, const Outputs& outputs,
                   const ScoreShape& shape, void* workspace, cudaStream_t stream) {
    const ScoreProgram<Element> program{score_parameters.form == Form::kPooled,
                                        score_scale(score_parameters, shape.width),
                                        parameters,
                                        static_cast<const Element*>(query),
                                        static_cast<const Element*>(key),
                                        static_cast<const Element*>(value),
                                        valid,
                                        shape,
                                        row_limit(parameters, shape.patches),
                                        workspace,
                                        score,
                                        outputs};
    return launch_blocks(program, shape.batch * shape.heads, kThreads, shared_bytes(shape.patches), stream);
}

}  // namespace

size_t score_workspace(const ScoreShape& shape) { return ScoreWorkspace::bytes(shape); }

cudaError_t score_sample_on_device(const ScoreParameters& score_parameters, const SampleParameters& parameters, int32_t dtype,
                                   const void* query, const void* key, const void* value, float* score,
                                   const SampleTensors& tensors, const ScoreShape& shape, void* workspace,
                                   cudaStream_t stream) {
    const ScoreWorkspace layout(workspace, shape);
    cudaError_t error = cudaMemsetAsync(layout.tickets, 0, shape.batch * sizeof(unsigned int), stream);
    if (error != cudaSuccess) return error;
    const bool known = parameters.padded || shape.batch == 1;
    const int64_t fixed = parameters.padded ? row_limit(parameters, shape.patches) : 0;
    const Outputs outputs{tensors.index, tensors.keep, tensors.count, known ? fixed : -1};
    const auto run = dtype == VP_FLOAT32 ? launch<float> : dtype == VP_FLOAT16 ? launch<Half> : launch<Bfloat16>;
    error = run(score_parameters, parameters, query, key, value, tensors.valid, score, outputs, shape, workspace, stream);
    if (error != cudaSuccess || known) return error;
    return emit_on_device(0, tensors.index, tensors.keep, tensors.count, shape.batch, shape.patches, layout.sample, stream);
}

}  // namespace vitprune
