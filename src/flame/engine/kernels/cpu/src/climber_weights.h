// The weights of a Climber, and the memory one thread works in.
#pragma once

#include "attention.h"
#include "bias.h"
#include "tokens.h"

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

}  // namespace flame
