// From the blocks' outputs of a candidate to its scores: gating fusion, experts, towers.
#pragma once

#include "climber_layer.h"
#include "tower.h"

namespace flame {

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

}  // namespace flame
