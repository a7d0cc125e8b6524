// Climber on row tiles, as `run.h` calls it. Formulas: `flame.engine.models`.
#pragma once

#include "climber_head.h"
#include "climber_layer.h"

namespace flame {

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
