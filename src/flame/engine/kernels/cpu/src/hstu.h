// The HSTU stack on row tiles: pointwise attention gated by u. Formulas: `flame.engine.models.hstu`.
#pragma once

#include "attention.h"
#include "buckets.h"
#include "norm.h"
#include "schedule.h"
#include "tokens.h"
#include "tower.h"

namespace flame {

// Pointers to weights, in the order of `compiled_model.py`.
struct LayerWeights {
    const float *norm_in, *norm_in_bias;    // [DIM]
    const float *uvqk, *uvqk_bias;          // [2 VALUE_WIDTH + 2 KEY_WIDTH, DIM]; rows: u, v, q, k
    const float *norm_out, *norm_out_bias;  // [VALUE_WIDTH]
    const float* out;                       // [DIM, 3 VALUE_WIDTH]; columns: u, o, y
};

struct Weights {
    InputWeights input;
    const float* times;      // [TIME_BUCKETS, DIM]
    const float* scenarios;  // [SCENARIOS, DIM]
    LayerWeights layers[LAYERS];
    const float *norm, *norm_bias;      // [DIM]
    const float *hidden, *hidden_bias;  // [TASKS * TOWER_HIDDEN, DIM]
    const float *out, *out_bias;        // [TASKS, TOWER_HIDDEN], [TASKS]
};

constexpr float EPS = 1e-6f;
constexpr int FIRST_V = VALUE_WIDTH, FIRST_Q = 2 * VALUE_WIDTH, FIRST_K = 2 * VALUE_WIDTH + KEY_WIDTH;

// Working memory of one thread for one tile.
struct alignas(64) Scratch {
    Vec items[ITEM_DIM * TILE];
    Vec normal[DIM * TILE];
    Vec q[ATTENTION_DIM * TILE], k[ATTENTION_DIM * TILE];
    Vec weights[KEY_CHUNK * TILE];
    Vec gated[3 * VALUE_WIDTH * TILE];  // u, o and y, one under the other
    Vec tower[TOWER_HIDDEN * TILE];
};

template <int VECS>
INLINE void norm_in(const LayerWeights& weights, const Vec* x, Vec* normal) {
    layer_norm<DIM, VECS>(x, weights.norm_in, weights.norm_in_bias, EPS,
                          [&](int n, int v, Vec value) INLINE_LAMBDA { normal[n * VECS + v] = value; });
}

// COUNT outputs of uvqk from row `first` on: out[COUNT][VECS].
template <int COUNT, int VECS, class After>
INLINE void project(const LayerWeights& weights, int first, const Vec* normal, Vec* out, After&& after) {
    linear<COUNT, DIM, VECS>(weights.uvqk + (int64_t)first * DIM, weights.uvqk_bias + first, normal, out, after);
}

// Writes WIDTH features from row `first` of uvqk on as tiles of keys or values.
template <int WIDTH, int VECS>
INLINE void write_tiles(const LayerWeights& weights, int first, const Vec* normal, Vec* out) {
    product<WIDTH, DIM, VECS>(
        weights.uvqk + (int64_t)first * DIM, normal,
        [&](int n, int) INLINE_LAMBDA { return splat(weights.uvqk_bias[first + n]); },
        [&](int n, int v, Vec value) INLINE_LAMBDA { out[v * WIDTH + n] = value; });
}

// o of one head, in scratch.gated, before the model's scale.
template <int VECS, bool CANDIDATES>
INLINE void attend_head(const LayerWeights& weights, const Tile& tile, State& state, int layer, int head,
                        Scratch& scratch) {
    constexpr bool MASKED = CAUSAL && !CANDIDATES;
    const Vec alpha = splat(1.0f / __builtin_sqrtf((float)ATTENTION_DIM));
    Vec* out = scratch.gated + (VALUE_WIDTH + head * LINEAR_DIM) * VECS;
    project<ATTENTION_DIM, VECS>(weights, FIRST_Q + head * ATTENTION_DIM, scratch.normal, scratch.q,
                                 [&](Vec value) INLINE_LAMBDA { return value * alpha; });
    if constexpr (CANDIDATES) {
        project<ATTENTION_DIM, VECS>(weights, FIRST_K + head * ATTENTION_DIM, scratch.normal, scratch.k, same);
        project<LINEAR_DIM, VECS>(weights, FIRST_V + head * LINEAR_DIM, scratch.normal, out, same);
        for (int v = 0; v < VECS; ++v) {
            Vec score = Vec{};
            for (int n = 0; n < ATTENTION_DIM; ++n)
                score = fma(scratch.q[n * VECS + v], scratch.k[n * VECS + v], score);
            const Vec weight = silu(score);
            for (int n = 0; n < LINEAR_DIM; ++n) out[n * VECS + v] *= weight;
        }
    } else {
        for (int n = 0; n < LINEAR_DIM * VECS; ++n) out[n] = Vec{};
    }
    Keys seen{state.keys(0, layer) + head * ATTENTION_DIM * LANES, state.values(0, layer) + head * LINEAR_DIM * LANES,
              tile.keys, tile.keys, nullptr};
    if constexpr (MASKED) {
        seen.count = tile.first + tile.rows;
        seen.first_row = tile.first;
    }
    pointwise_attention<ATTENTION_DIM, LINEAR_DIM, State::KEY_FLOATS, State::VALUE_FLOATS, VECS, MASKED>(
        seen, scratch.q, scratch.weights, out);
}

// One layer of a tile: x[DIM][VECS] in and out.
template <int VECS, bool CANDIDATES>
void run_layer(const LayerWeights& weights, const Tile& tile, Vec* x, State& state, int layer, Scratch& scratch) {
    norm_in<VECS>(weights, x, scratch.normal);
    project<VALUE_WIDTH, VECS>(weights, 0, scratch.normal, scratch.gated, silu);
    for (int head = 0; head < HEADS; ++head)
        attend_head<VECS, CANDIDATES>(weights, tile, state, layer, head, scratch);
    const Vec* u = scratch.gated;
    Vec* o = scratch.gated + VALUE_WIDTH * VECS;
    Vec* y = scratch.gated + 2 * VALUE_WIDTH * VECS;
    for (int n = 0; n < VALUE_WIDTH * VECS; ++n) o[n] *= splat(1.0f / MAX_KEYS);
    layer_norm<VALUE_WIDTH, VECS>(
        o, weights.norm_out, weights.norm_out_bias, EPS,
        [&](int n, int v, Vec value) INLINE_LAMBDA { y[n * VECS + v] = u[n * VECS + v] * value; });
    product<DIM, 3 * VALUE_WIDTH, VECS>(
        weights.out, scratch.gated, [&](int n, int v) INLINE_LAMBDA { return x[n * VECS + v]; },
        [&](int n, int v, Vec value) INLINE_LAMBDA { x[n * VECS + v] = value; });
}

// The bucket of an event's time: of its age, or of the gap to the event before it.
INLINE int event_time(const Buffer& buffer, int user, int slot, const int32_t* words) {
    if constexpr (!TIME_GAPS) return time_between(words[EVENT_AGE], 0);
    return slot ? time_between(buffer.event(user, 0, slot - 1)[EVENT_AGE], words[EVENT_AGE]) : 0;
}

// What `run.h` needs of an architecture.
struct Model {
    using WeightsOf = Weights;
    using ScratchOf = Scratch;

    template <int VECS>
    static void prepare(const Weights& weights, const Buffer& buffer, const Tile& tile, State&, Vec* x, float*,
                        Scratch& scratch, bool& wrong) {
        const int scenario = buffer.header(tile.user)[HEADER_SCENARIO];
        if (tile.candidates)
            candidate_tokens<VECS>(weights.input, buffer, tile.user, tile.first, tile.rows, x, scratch.items, wrong,
                                   [&](Row<DIM>& shared) {
                                       shared.add(weights.times);
                                       shared.add(weights.scenarios + (int64_t)scenario * DIM);
                                   });
        else
            event_tokens<VECS>(weights.input, buffer, tile.user, 0, tile.first, tile.rows, tile.keys, x, scratch.items,
                               wrong, [&](int row, Row<DIM>& token, const int32_t* words) {
                                   const int bucket = event_time(buffer, tile.user, tile.first + row, words);
                                   token.add(weights.times + (int64_t)bucket * DIM);
                               });
    }

    template <int VECS>
    static void write(const Weights& weights, const Tile& tile, const Vec* x, State& state, int layer,
                      Scratch& scratch) {
        const LayerWeights& own = weights.layers[layer];
        const int64_t key_tile = tile.first / LANES;
        norm_in<VECS>(own, x, scratch.normal);
        write_tiles<KEY_WIDTH, VECS>(own, FIRST_K, scratch.normal, (Vec*)state.keys(0, layer) + key_tile * KEY_WIDTH);
        write_tiles<VALUE_WIDTH, VECS>(own, FIRST_V, scratch.normal,
                                       (Vec*)state.values(0, layer) + key_tile * VALUE_WIDTH);
    }

    template <int VECS>
    static void layer(const Weights& weights, const Tile& tile, int, Vec* x, State& state, int layer, const float*,
                      Scratch& scratch) {
        if (tile.candidates)
            run_layer<VECS, true>(weights.layers[layer], tile, x, state, layer, scratch);
        else
            run_layer<VECS, false>(weights.layers[layer], tile, x, state, layer, scratch);
    }

    // scores[row][task] of the candidates whose outputs are x[0].
    template <int VECS>
    static void finish(const Weights& weights, int, const Vec* const* x, float* scores, int rows, Scratch& scratch) {
        layer_norm<DIM, VECS>(x[0], weights.norm, weights.norm_bias, EPS, [&](int n, int v, Vec value)
                                  INLINE_LAMBDA { scratch.normal[n * VECS + v] = value; });
        for (int64_t task = 0; task < TASKS; ++task) {
            Vec logit[VECS];
            run_tower<TOWER_HIDDEN, DIM, VECS>(weights.hidden + task * TOWER_HIDDEN * DIM,
                                               weights.hidden_bias + task * TOWER_HIDDEN,
                                               weights.out + task * TOWER_HIDDEN, weights.out_bias[task],
                                               scratch.normal, scratch.tower, logit);
            put_scores<VECS>(logit, task, scores, rows);
        }
    }
};

}  // namespace flame
