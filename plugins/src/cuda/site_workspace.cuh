// SPDX-License-Identifier: Apache-2.0
//
// Layout of the workspace of PruneSite: tickets int32 [B]; attention and squared lengths float [B,H,N]; score and what is compared
// float [B,P]; valid bool [B,P]; slots int32 [B,P], the positions that stay; then the sampling part.
#pragma once

#include "cuda/workspace.cuh"
#include "site.h"

namespace vitprune {

struct SiteWorkspace {
    unsigned int* tickets;
    float* attention;
    float* squares;
    float* score;
    float* compared;
    uint8_t* valid;
    int32_t* slots;
    void* sample;
    size_t bytes;

    __host__ __device__ SiteWorkspace(void* base, const SiteShape& shape) {
        const size_t patches = static_cast<size_t>(shape.batch) * shape.patches;
        const size_t heads = static_cast<size_t>(shape.batch) * shape.heads * shape.tokens();
        char* at = static_cast<char*>(base);
        tickets = take<unsigned int>(at, shape.batch);
        attention = take<float>(at, heads);
        squares = take<float>(at, heads);
        score = take<float>(at, patches);
        compared = take<float>(at, patches);
        valid = take<uint8_t>(at, patches);
        slots = take<int32_t>(at, patches);
        sample = at;
        bytes = static_cast<size_t>(at - static_cast<char*>(base)) + SampleWorkspace::bytes(shape.batch, shape.patches);
    }
};

}  // namespace vitprune
