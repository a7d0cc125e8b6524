// The functions Python calls. `Model` is defined by the file that includes this one. None of them throws.
#pragma once

#include "run.h"

extern "C" {

int64_t flame_weight_count() { return sizeof(flame::Weights) / sizeof(const float*); }

int64_t flame_state_bytes(int32_t events) { return flame::State::bytes(flame::vectors(events)); }

void flame_state_reset(void* state, int32_t events) {
    std::memset(state, 0xff, flame::State::HEAD);
    ((flame::State*)state)->tiles = flame::vectors(events);
}

void* flame_open(const void* weights, const flame::Shape* shape, int32_t threads) {
    try {
        return new flame::Workspace<flame::Model>((const flame::Weights*)weights, *shape, threads);
    } catch (...) {
        return nullptr;
    }
}

int32_t flame_launch(void* workspace, int32_t mode, const int32_t* words, int32_t users, float* scores, void** states) {
    auto* own = (flame::Workspace<flame::Model>*)workspace;
    return own->launch((flame::Mode)mode, words, users, scores, (flame::State* const*)states);
}

void flame_poison(void* workspace) { ((flame::Workspace<flame::Model>*)workspace)->poison(); }

void flame_close(void* workspace) { delete (flame::Workspace<flame::Model>*)workspace; }
}
