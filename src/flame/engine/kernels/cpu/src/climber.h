// The Climber stack on row tiles: adaptive layers, gating fusion, expert head. Formulas: `flame.engine.models`.
#pragma once

#include "attention.h"
#include "bias.h"
#include "norm.h"
#include "schedule.h"
#include "tokens.h"
#include "tower.h"

namespace flame {

// Pointers to weights, in the order of `compiled_model.py`.
struct LayerWeights {
    const float *qkv, *qkv_bias;          // [stacks, 3 DIM, DIM], [stacks, 3 DIM]
    const float* log_temperature;         // [stacks, SCENARIOS]
    const float *ffn_in, *ffn_in_bias;    // [stacks, FFN, DIM], [stacks, FFN]
    const float *ffn_out, *ffn_out_bias;  // [stacks, DIM, FFN], [stacks, DIM]
    const float *norm, *norm_bias;        // [stacks, DIM]

    // The weights of one stack entry.
    LayerWeights of(int64_t stack) const {
        return {qkv + stack * 3 * DIM * DIM, qkv_bias + stack * 3 * DIM, log_temperature + stack * SCENARIOS,
                ffn_in + stack * FFN * DIM,  ffn_in_bias + stack * FFN,  ffn_out + stack * DIM * FFN,
                ffn_out_bias + stack * DIM,  norm + stack * DIM,         norm_bias + stack * DIM};
    }
    // What turns q k^T into a logarithm to base 2 of the softmax weights.
    float scale(int scenario) const { return 1.44269504f * std::exp(-log_temperature[scenario]); }
};

struct HeadWeights {
    const float *experts_in, *experts_in_bias;    // [EXPERTS * EXPERT_HIDDEN, WIDTH]
    const float *experts_out, *experts_out_bias;  // [EXPERTS, EXPERT_DIM, EXPERT_HIDDEN]
    const float *gates, *gates_bias;              // [TASKS * EXPERTS, WIDTH]
    const float *hidden, *hidden_bias;            // [TASKS, TOWER_HIDDEN, EXPERT_DIM]
    const float *out, *out_bias;                  // [TASKS, TOWER_HIDDEN], [TASKS]
};

struct Weights {
    InputWeights input;
    BiasWeights bias;
    LayerWeights layers[LAYERS];
    LayerWeights fusion;
    const float *squeeze, *squeeze_bias;  // [SQUEEZED, WIDTH]
    const float *excite, *excite_bias;    // [WIDTH, SQUEEZED]
    HeadWeights head;
};

constexpr int WIDTH = BLOCKS * DIM;
constexpr int HIDDEN_CHUNK = FFN < 96 ? FFN : 96;
constexpr int HEAD_DIM = DIM / HEADS;

// Working memory of one thread for one tile.
struct alignas(64) Scratch {
    Vec q[HEAD_DIM * TILE], k[HEAD_DIM * TILE];
    Vec weights[KEY_CHUNK * TILE];
    Vec attended[DIM * TILE];
    Vec hidden[HIDDEN_CHUNK * TILE];
    Vec fed[DIM * TILE];
    Vec items[ITEM_DIM * TILE];
    Vec qkv[BLOCKS * 3 * DIM * TILE];
    Vec blocks[WIDTH * TILE], wide[WIDTH * TILE];
    Vec squeezed[SQUEEZED * TILE];
    Vec expert_hidden[EXPERT_HIDDEN * TILE];
    Vec experts[EXPERTS * EXPERT_DIM * TILE];
    Vec gates[TASKS * EXPERTS * TILE];
    Vec mixed[EXPERT_DIM * TILE];
    Vec tower[TOWER_HIDDEN * TILE];
};

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

// out[COUNT][VECS] = softmax over each group of COUNT logits.
template <int COUNT, int VECS>
INLINE void softmax_rows(Vec* logits, float scale) {
    for (int v = 0; v < VECS; ++v) {
        Vec top = logits[v], sum = Vec{};
        for (int n = 1; n < COUNT; ++n) top = larger(top, logits[n * VECS + v]);
        for (int n = 0; n < COUNT; ++n) {
            logits[n * VECS + v] = exp2((logits[n * VECS + v] - top) * splat(scale));
            sum += logits[n * VECS + v];
        }
        const Vec share = splat(1.0f) / sum;
        for (int n = 0; n < COUNT; ++n) logits[n * VECS + v] *= share;
    }
}

// Attention of the blocks' outputs of a candidate among themselves: scratch.attended for row `block`.
template <int VECS>
INLINE void fuse_row(int block, float scale, Scratch& scratch) {
    for (int head = 0; head < HEADS; ++head) {
        const Vec* q = scratch.qkv + (block * 3 * DIM + head * HEAD_DIM) * VECS;
        Vec shares[BLOCKS * VECS];
        for (int other = 0; other < BLOCKS; ++other) {
            const Vec* k = scratch.qkv + (other * 3 * DIM + DIM + head * HEAD_DIM) * VECS;
            for (int v = 0; v < VECS; ++v) {
                Vec score = Vec{};
                for (int n = 0; n < HEAD_DIM; ++n) score = fma(q[n * VECS + v], k[n * VECS + v], score);
                shares[other * VECS + v] = score;
            }
        }
        softmax_rows<BLOCKS, VECS>(shares, scale);
        for (int n = 0; n < HEAD_DIM; ++n)
            for (int v = 0; v < VECS; ++v) {
                Vec sum = Vec{};
                for (int other = 0; other < BLOCKS; ++other)
                    sum = fma(shares[other * VECS + v],
                              scratch.qkv[(other * 3 * DIM + 2 * DIM + head * HEAD_DIM + n) * VECS + v], sum);
                scratch.attended[(head * HEAD_DIM + n) * VECS + v] = sum;
            }
    }
}

// scratch.wide[WIDTH][VECS] = gating fusion of scratch.blocks[BLOCKS * DIM][VECS].
template <int VECS>
INLINE void fuse(const Weights& weights, int scenario, Scratch& scratch) {
    for (int block = 0; block < BLOCKS; ++block)
        linear<3 * DIM, DIM, VECS>(weights.fusion.qkv, weights.fusion.qkv_bias, scratch.blocks + block * DIM * VECS,
                                   scratch.qkv + block * 3 * DIM * VECS, same);
    for (int block = 0; block < BLOCKS; ++block) {
        fuse_row<VECS>(block, weights.fusion.scale(scenario), scratch);
        finish_layer<VECS>(weights.fusion, scratch.blocks + block * DIM * VECS, scratch.attended, scratch);
    }
    linear<SQUEEZED, WIDTH, VECS>(weights.squeeze, weights.squeeze_bias, scratch.blocks, scratch.squeezed, relu);
    linear<WIDTH, SQUEEZED, VECS>(weights.excite, weights.excite_bias, scratch.squeezed, scratch.wide, sigmoid);
    for (int n = 0; n < WIDTH * VECS; ++n) scratch.wide[n] *= scratch.blocks[n];
}

// scratch.experts and scratch.gates from scratch.wide.
template <int VECS>
INLINE void run_experts(const HeadWeights& head, Scratch& scratch) {
    for (int64_t expert = 0; expert < EXPERTS; ++expert) {
        linear<EXPERT_HIDDEN, WIDTH, VECS>(head.experts_in + expert * EXPERT_HIDDEN * WIDTH,
                                           head.experts_in_bias + expert * EXPERT_HIDDEN, scratch.wide,
                                           scratch.expert_hidden, relu);
        linear<EXPERT_DIM, EXPERT_HIDDEN, VECS>(head.experts_out + expert * EXPERT_DIM * EXPERT_HIDDEN,
                                                head.experts_out_bias + expert * EXPERT_DIM, scratch.expert_hidden,
                                                scratch.experts + expert * EXPERT_DIM * VECS, same);
    }
    linear<TASKS * EXPERTS, WIDTH, VECS>(head.gates, head.gates_bias, scratch.wide, scratch.gates, same);
    for (int task = 0; task < TASKS; ++task)
        softmax_rows<EXPERTS, VECS>(scratch.gates + task * EXPERTS * VECS, 1.44269504f);
}

// logit[VECS] of one task.
template <int VECS>
INLINE void run_task(const HeadWeights& head, int64_t task, Scratch& scratch, Vec* logit) {
    const Vec* shares = scratch.gates + task * EXPERTS * VECS;
    for (int n = 0; n < EXPERT_DIM; ++n)
        for (int v = 0; v < VECS; ++v) {
            Vec sum = Vec{};
            for (int expert = 0; expert < EXPERTS; ++expert)
                sum = fma(shares[expert * VECS + v], scratch.experts[(expert * EXPERT_DIM + n) * VECS + v], sum);
            scratch.mixed[n * VECS + v] = sum;
        }
    run_tower<TOWER_HIDDEN, EXPERT_DIM, VECS>(
        head.hidden + task * TOWER_HIDDEN * EXPERT_DIM, head.hidden_bias + task * TOWER_HIDDEN,
        head.out + task * TOWER_HIDDEN, head.out_bias[task], scratch.mixed, scratch.tower, logit);
}

// What `run.h` needs of an architecture.
struct Model {
    using WeightsOf = Weights;
    using ScratchOf = Scratch;

    template <int VECS>
    static void prepare(const Weights& weights, const Buffer& buffer, const Tile& tile, State& state, Vec* x,
                        float* bias, Scratch& scratch, bool& wrong) {
        const int scenario = buffer.header(tile.user)[HEADER_SCENARIO];
        if (tile.candidates) {
            candidate_tokens<VECS>(weights.input, buffer, tile.user, tile.first, tile.rows, x, scratch.items, wrong,
                                   [](Row<DIM>&) {});
            if constexpr (RELATIVE_BIAS)
                candidate_bias(weights.bias, tile.block, scenario, state.ages(tile.block), tile.keys, tile.keys, bias);
        } else {
            event_tokens<VECS>(weights.input, buffer, tile.user, tile.block, tile.first, tile.rows, tile.keys, x,
                               scratch.items, wrong, [](int, Row<DIM>&, const int32_t*) {});
            if constexpr (RELATIVE_BIAS)
                event_bias(weights.bias, tile.block, scenario, state.ages(tile.block), tile.first, VECS * LANES,
                           tile.keys, tile.keys, bias);
        }
    }

    template <int VECS>
    static void write(const Weights& weights, const Tile& tile, const Vec* x, State& state, int layer, Scratch&) {
        write_keys<VECS>(weights.layers[layer].of(tile.block), tile, x, state, layer);
    }

    template <int VECS>
    static void layer(const Weights& weights, const Tile& tile, int scenario, Vec* x, State& state, int layer,
                      const float* bias, Scratch& scratch) {
        if (tile.candidates)
            run_layer<VECS, true>(weights, tile, scenario, x, state, layer, bias, scratch);
        else
            run_layer<VECS, false>(weights, tile, scenario, x, state, layer, bias, scratch);
    }

    // scores[row][task] of the candidates whose block outputs are x[block].
    template <int VECS>
    static void finish(const Weights& weights, int scenario, const Vec* const* x, float* scores, int rows,
                       Scratch& scratch) {
        for (int block = 0; block < BLOCKS; ++block)
            std::memcpy(scratch.blocks + block * DIM * VECS, x[block], sizeof(Vec) * DIM * VECS);
        fuse<VECS>(weights, scenario, scratch);
        run_experts<VECS>(weights.head, scratch);
        for (int task = 0; task < TASKS; ++task) {
            Vec logit[VECS];
            run_task<VECS>(weights.head, task, scratch, logit);
            put_scores<VECS>(logit, task, scores, rows);
        }
    }
};

}  // namespace flame
