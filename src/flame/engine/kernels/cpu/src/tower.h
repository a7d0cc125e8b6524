// The last steps to a score: a task's tower, its activation, and the way out of the lanes.
#pragma once

#include "gemm.h"
#include "launch.h"

namespace flame {

// logit[VECS] = out . relu(hidden x + hidden bias) + out bias; `room` is [HIDDEN][VECS].
template <int HIDDEN, int INPUTS, int VECS>
INLINE void run_tower(const float* hidden, const float* hidden_bias, const float* out, float out_bias, const Vec* x,
                      Vec* room, Vec* logit) {
    linear<HIDDEN, INPUTS, VECS>(hidden, hidden_bias, x, room, relu);
    for (int v = 0; v < VECS; ++v) {
        logit[v] = splat(out_bias);
        for (int n = 0; n < HIDDEN; ++n) logit[v] = fma(splat(out[n]), room[n * VECS + v], logit[v]);
    }
}

// Writes one task's scores of a tile, scores[row][TASKS], after its activation.
template <int VECS>
INLINE void put_scores(Vec* logit, int task, float* scores, int rows) {
    if (SIGMOID[task])
        for (int v = 0; v < VECS; ++v) logit[v] = sigmoid(logit[v]);
    for (int row = 0; row < rows; ++row) scores[row * TASKS + task] = ((const float*)logit)[row];
}

}  // namespace flame
