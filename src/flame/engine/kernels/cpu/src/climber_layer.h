// One adaptive layer of Climber on a row tile.
#pragma once

#include "climber_weights.h"
#include "norm.h"
#include "schedule.h"

namespace flame {

// fed[DIM][VECS] = ffn_out(relu(ffn_in(x))), CHUNK hidden features at a time.
template <int VECS, int CHUNK>
INLINE void feed_chunk(const LayerWeights& weights, const Vec* x, Scratch& scratch, int first) {
    linear<CHUNK, DIM, VECS>(weights.ffn_in + (int64_t)first * DIM, weights.ffn_in_bias + first, x, scratch.hidden,
                             relu);
    product<DIM, CHUNK, VECS, FFN>(
        weights.ffn_out + first, scratch.hidden,
        [&](int n, int v) INLINE_LAMBDA {
            return first == 0 ? splat(weights.ffn_out_bias[n]) : scratch.fed[n * VECS + v];
        },
        [&](int n, int v, Vec value) INLINE_LAMBDA { scratch.fed[n * VECS + v] = value; });
}

template <int VECS>
INLINE void feed_forward(const LayerWeights& weights, const Vec* x, Scratch& scratch) {
    int first = 0;
    for (; first + HIDDEN_CHUNK <= FFN; first += HIDDEN_CHUNK)
        feed_chunk<VECS, HIDDEN_CHUNK>(weights, x, scratch, first);
    if constexpr (FFN % HIDDEN_CHUNK != 0) feed_chunk<VECS, FFN % HIDDEN_CHUNK>(weights, x, scratch, first);
}

// x[DIM][VECS] = the rest of the layer after attention; `attended` is overwritten.
template <int VECS>
INLINE void finish_layer(const LayerWeights& weights, Vec* x, Vec* attended, Scratch& scratch) {
    if constexpr (FLAME_WIRING) {
        for (int n = 0; n < DIM * VECS; ++n) attended[n] += x[n];
        feed_forward<VECS>(weights, attended, scratch);
        layer_norm<DIM, VECS>(scratch.fed, weights.norm, weights.norm_bias, 1e-5f, [&](int n, int v, Vec value)
                                  INLINE_LAMBDA { x[n * VECS + v] = attended[n * VECS + v] + value; });
    } else {
        feed_forward<VECS>(weights, attended, scratch);
        for (int n = 0; n < DIM * VECS; ++n) scratch.fed[n] += x[n];
        layer_norm<DIM, VECS>(scratch.fed, weights.norm, weights.norm_bias, 1e-5f,
                              [&](int n, int v, Vec value) INLINE_LAMBDA { x[n * VECS + v] = value; });
    }
}

// Writes the keys and values of a history tile for one layer into the state.
template <int VECS>
void write_keys(const LayerWeights& weights, const Tile& tile, const Vec* x, State& state, int layer) {
    const int64_t key_tile = tile.first / LANES;
    Vec* keys = (Vec*)state.keys(tile.block, layer) + key_tile * DIM;
    Vec* values = (Vec*)state.values(tile.block, layer) + key_tile * DIM;
    const auto write = [&](int part, Vec* out) INLINE_LAMBDA {
        const float* bias = weights.qkv_bias + part * DIM;
        product<DIM, DIM, VECS>(
            weights.qkv + part * DIM * DIM, x, [&](int n, int) INLINE_LAMBDA { return splat(bias[n]); },
            [&](int n, int v, Vec value) INLINE_LAMBDA { out[v * DIM + n] = value; });
    };
    write(1, keys);
    write(2, values);
}

// The parts of q, k or v (part 0, 1, 2) that belong to one head: out[HEAD_DIM][VECS].
template <int VECS>
INLINE void project_head(const LayerWeights& weights, int part, int head, const Vec* x, Vec* out, float factor) {
    const int first = part * DIM + head * HEAD_DIM;
    const Vec scale = splat(factor);
    linear<HEAD_DIM, DIM, VECS>(weights.qkv + first * DIM, weights.qkv_bias + first, x, out,
                                [&](Vec value) INLINE_LAMBDA { return value * scale; });
}

// scratch.attended[DIM][VECS] = attention of a tile over the keys of its history, and candidates over themselves.
template <int VECS, bool CANDIDATES>
INLINE void attend(const LayerWeights& weights, const BiasWeights& bias, const Tile& tile, int scenario, const Vec* x,
                   State& state, int layer, const float* tile_bias, Scratch& scratch) {
    constexpr bool MASKED = CAUSAL && !CANDIDATES;
    constexpr int BIAS = !RELATIVE_BIAS ? 0 : CANDIDATES ? 1 : 2;
    const float scale = weights.scale(scenario);
    for (int head = 0; head < HEADS; ++head) {
        Vec* out = scratch.attended + head * HEAD_DIM * VECS;
        project_head<VECS>(weights, 0, head, x, scratch.q, scale);
        if constexpr (CANDIDATES) {
            project_head<VECS>(weights, 1, head, x, scratch.k, 1.0f);
            project_head<VECS>(weights, 2, head, x, out, 1.0f);
        } else {
            const Vec* own = (const Vec*)state.keys(tile.block, layer) + tile.first / LANES * DIM + head * HEAD_DIM;
            for (int n = 0; n < HEAD_DIM; ++n)
                for (int v = 0; v < VECS; ++v) {
                    scratch.k[n * VECS + v] = own[v * DIM + n];
                    out[n * VECS + v] = Vec{};
                }
        }
        float own_bias = 0.0f;
        if constexpr (RELATIVE_BIAS) own_bias = HeadBias(bias, tile.block, head, scenario).of_itself() * scale;
        SoftmaxSums<VECS> sums;
        for (int v = 0; v < VECS; ++v) {
            sums.shift[v] = splat(own_bias);
            sums.sum[v] = splat(CANDIDATES ? 1.0f : 0.0f);
            for (int n = 0; n < HEAD_DIM; ++n)
                sums.shift[v] = fma(scratch.q[n * VECS + v], scratch.k[n * VECS + v], sums.shift[v]);
        }
        Keys seen{state.keys(tile.block, layer) + head * HEAD_DIM * LANES,
                  state.values(tile.block, layer) + head * HEAD_DIM * LANES, tile.keys, tile.keys, nullptr};
        if constexpr (MASKED) {
            seen.count = tile.first + tile.rows;
            seen.first_row = tile.first;
        }
        if constexpr (RELATIVE_BIAS)
            seen.bias = tile_bias + (int64_t)head * tile.keys * (CANDIDATES ? 1 : VECS * LANES);
        softmax_attention<HEAD_DIM, HEAD_DIM, State::KEY_FLOATS, State::VALUE_FLOATS, VECS, MASKED, BIAS>(
            seen, scratch.q, scale, scratch.weights, out, sums);
    }
}

// One layer of a tile: x[DIM][VECS] in and out.
template <int VECS, bool CANDIDATES>
void run_layer(const Weights& weights, const Tile& tile, int scenario, Vec* x, State& state, int layer,
               const float* tile_bias, Scratch& scratch) {
    const LayerWeights own = weights.layers[layer].of(tile.block);
    attend<VECS, CANDIDATES>(own, weights.bias, tile, scenario, x, state, layer, tile_bias, scratch);
    finish_layer<VECS>(own, x, scratch.attended, scratch);
}

}  // namespace flame
