// SPDX-License-Identifier: Apache-2.0
//
// Layout of the workspace of a merging site: counters of the stages; what was decided, for the second launch; then what the kinds need.
#pragma once

#include "cuda/site_workspace.cuh"
#include "merge_site.h"

namespace vitprune {

struct MergeWorkspace {
    unsigned int* counters;    // [1+B], of stages.cuh
    int32_t* counts;           // [B], slots that stay
    int32_t* into;             // [B,P], the slot where a slot ends
    int32_t* slots;            // [B,P], those that stay in the order of their rows
    int32_t* members;          // [B,P], slots in the order of where they end, then of their own number
    int32_t *begin, *end;      // [B,P], of a slot's stretch of members, its own number among them
    uint8_t* stays;            // [B,P], whether patches of a row keep it
    uint8_t* mask;             // [B,P]
    int32_t* slot_of;          // [B,P0], slot by original number, -1: none
    unsigned long long* keys;  // [B, a power of two], where they do not fit into shared memory
    float* worth;              // [B,P], by what slots are chosen: likeness (kPair, by member of A), damage with a minus, mass
    int32_t* partner;          // [B,P], -1: none
    float* length;             // [B,P], of the metric's rows (kPair), squared, of directions (kWard)
    // kWard
    float *norm, *factor;      // [B,P], of the rows, and one over it
    float *weight, *mass;      // [B,P], masses before and after merging
    float* inverse;            // [B,P], one over the mass
    float* share;              // [B,P], of a slot that joins in the centroid
    int32_t* source;           // [B,P], the slot that joins this one in this round, -1: none
    int32_t *joined, *joins;   // [B,P] slots that join in this round, [B] how many
    int64_t* left;             // [B], pairs that may still merge
    float* attention;          // [B,H,N]
    float* products;           // [B,P,P], of the centroids, where there is a second round
    // kSampled
    void* sampling;            // a SiteWorkspace
    int32_t *leaving, *leavers;  // [B,P] slots that join one that stays, [B] how many
    float* unit;               // [B,D,P], rows of the metric summed over the heads, of unit length, across
    size_t bytes;

    __host__ __device__ MergeWorkspace(void* base, const MergeParameters& parameters, const MergeShape& shape) {
        const bool ward = parameters.kind == MergeKind::kWard, sampled = parameters.kind == MergeKind::kSampled;
        const size_t batch = shape.batch, slots_of_all = batch * shape.patches;
        char* at = static_cast<char*>(base);
        counters = take<unsigned int>(at, 1 + batch);
        counts = take<int32_t>(at, batch);
        into = take<int32_t>(at, slots_of_all);
        slots = take<int32_t>(at, slots_of_all);
        members = take<int32_t>(at, slots_of_all);
        begin = take<int32_t>(at, slots_of_all);
        end = take<int32_t>(at, slots_of_all);
        stays = take<uint8_t>(at, slots_of_all);
        mask = take<uint8_t>(at, slots_of_all);
        slot_of = take<int32_t>(at, batch * shape.originals);
        keys = take<unsigned long long>(at, shape.patches > kSharedPatches ? batch * power_of_two_above(shape.patches) : 0);
        worth = take<float>(at, sampled ? 0 : slots_of_all);
        partner = take<int32_t>(at, sampled ? 0 : slots_of_all);
        length = take<float>(at, sampled ? 0 : slots_of_all);
        norm = take<float>(at, ward ? slots_of_all : 0);
        factor = take<float>(at, ward ? slots_of_all : 0);
        weight = take<float>(at, ward ? slots_of_all : 0);
        mass = take<float>(at, ward ? slots_of_all : 0);
        inverse = take<float>(at, ward ? slots_of_all : 0);
        share = take<float>(at, ward ? slots_of_all : 0);
        source = take<int32_t>(at, ward ? slots_of_all : 0);
        joined = take<int32_t>(at, ward ? slots_of_all : 0);
        joins = take<int32_t>(at, ward ? batch : 0);
        left = take<int64_t>(at, ward ? batch : 0);
        attention = take<float>(at, ward ? batch * shape.heads * shape.tokens() : 0);
        products = take<float>(at, ward && parameters.ward.rounds > 1 ? slots_of_all * shape.patches : 0);
        leaving = take<int32_t>(at, sampled ? slots_of_all : 0);
        leavers = take<int32_t>(at, sampled ? batch : 0);
        unit = take<float>(at, sampled ? slots_of_all * shape.depth : 0);
        sampling = at;
        const SiteShape site{shape.batch, shape.patches, shape.prefix, shape.width, 0, shape.heads, shape.depth};
        bytes = static_cast<size_t>(at - static_cast<char*>(base)) + (sampled ? SiteWorkspace(nullptr, site).bytes : 0);
    }
};

}  // namespace vitprune
