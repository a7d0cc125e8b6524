// Attention of a row tile over the keys of a history, one head at a time, and over the row's own key.
//
// Keys and values lie in key tiles of LANES keys: `[key tile][feature][LANES]`, which is how a row tile writes them.
// Scores of KEY_CHUNK keys are kept in the first-level cache, turned into weights while they are in registers, and
// multiplied with the values at once. Chunks start at multiples of KEY_CHUNK whatever the tile, so that a row's
// sums do not depend on the tile it is in.
#pragma once

#include "gemm.h"

namespace flame {

constexpr int KEY_CHUNK = 64;
static_assert(KEY_CHUNK % LANES == 0);

// What one head of a row tile attends to. `keys` and `values` point at the head inside the first key tile.
struct Keys {
    const float* keys;
    const float* values;
    int count;         // keys that exist
    int first_row;     // position of the tile's first row, where rows must not see keys after them; else `count`
    const float* bias; // added to scores: `[key][VECS * LANES]` for events, `[key]` for candidates, or null
};

// Positions of the rows in vector `v` of a tile.
INLINE IntVec rows_from(int first_row, int v) {
    IntVec rows;
    for (int lane = 0; lane < LANES; ++lane) rows[lane] = first_row + v * LANES + lane;
    return rows;
}

// weights[key - begin][v] = weigh(key, v, start(key, v) + q . key) for keys begin <= key < end of one chunk.
template <int QK_DIM, int TILE_FLOATS, int VECS, class Start, class Weigh>
INLINE void weigh_chunk(const float* keys, const Vec* q, Vec* weights, int begin, int end, Start&& start,
                        Weigh&& weigh) {
    for (int tile = begin; tile < end; tile += LANES) {
        const float* tile_keys = keys + (int64_t)(tile / LANES) * TILE_FLOATS;
        const auto panel = [&](auto width, int offset) INLINE_LAMBDA {
            Vec scores[width][VECS];
#pragma GCC unroll 32
            for (int m = 0; m < width; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < VECS; ++v) scores[m][v] = start(tile + offset + m, v);
            multiply<1, LANES>(scores, tile_keys + offset, q, QK_DIM);
            Vec* row = weights + (tile - begin + offset) * VECS;
#pragma GCC unroll 32
            for (int m = 0; m < width; ++m)
#pragma GCC unroll 8
                for (int v = 0; v < VECS; ++v) row[m * VECS + v] = weigh(tile + offset + m, v, scores[m][v]);
        };
        if (end - tile >= LANES) {
            panels<LANES, VECS>(panel);
        } else {
            int offset = 0;
            for (; offset + 4 <= end - tile; offset += 4) panel(Constant<4>{}, offset);
            for (; offset < end - tile; ++offset) panel(Constant<1>{}, offset);
        }
    }
}

// out[dim][v] += sum over the chunk's keys of value[key][dim] * weights[key][v].
template <int V_DIM, int TILE_FLOATS, int VECS>
INLINE void add_values(const float* values, const Vec* weights, Vec* out, int begin, int end) {
    panels<V_DIM, VECS>([&](auto dims, int first) INLINE_LAMBDA {
        Vec sums[dims][VECS];
#pragma GCC unroll 32
        for (int m = 0; m < dims; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) sums[m][v] = out[(first + m) * VECS + v];
        const float* tile_values = values + (int64_t)(begin / LANES) * TILE_FLOATS + first * LANES;
        const Vec* row = weights;
        int key = begin;
        for (; key + LANES <= end; key += LANES, row += LANES * VECS, tile_values += TILE_FLOATS)
            multiply<LANES, 1>(sums, tile_values, row, LANES);
        if (key < end) multiply<LANES, 1>(sums, tile_values, row, end - key);
#pragma GCC unroll 32
        for (int m = 0; m < dims; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) out[(first + m) * VECS + v] = sums[m][v];
    });
}

// Softmax attention in one pass. Scores are in units of log 2, relative to `shift`; a softmax does not mind which
// shift is taken, so a row starts with its score of itself and moves only when a score outgrows it by 2^64.
template <int VECS>
struct SoftmaxSums {
    static constexpr float OUTGROWN = 64.0f;
    Vec shift[VECS];
    Vec sum[VECS];
};

template <int QK_DIM, int V_DIM, int KEY_FLOATS, int VALUE_FLOATS, int VECS, bool MASKED, int BIAS>
INLINE void softmax_chunk(const Keys& seen, const Vec* q, float bias_scale, Vec* weights, Vec* out,
                          SoftmaxSums<VECS>& state, int begin, int end) {
    for (;;) {
        Vec top[VECS], sum[VECS];
        for (int v = 0; v < VECS; ++v) top[v] = sum[v] = Vec{};
        weigh_chunk<QK_DIM, KEY_FLOATS, VECS>(
            seen.keys, q, weights, begin, end,
            [&](int key, int v) INLINE_LAMBDA {
                if constexpr (BIAS == 1) return splat(seen.bias[key] * bias_scale) - state.shift[v];
                if constexpr (BIAS == 2)
                    return fma(((const Vec*)seen.bias)[(int64_t)key * VECS + v], splat(bias_scale), -state.shift[v]);
                return -state.shift[v];
            },
            [&](int key, int v, Vec score) INLINE_LAMBDA {
                Vec weight = exp2(score);
                if constexpr (MASKED) {
                    const IntVec visible = rows_from(seen.first_row, v) >= key;
                    score = select(visible, score, Vec{});
                    weight = select(visible, weight, Vec{});
                }
                top[v] = larger(top[v], score);
                sum[v] += weight;
                return weight;
            });
        bool outgrown = false;
        for (int v = 0; v < VECS; ++v) outgrown |= any_above(top[v], state.OUTGROWN);
        if (!outgrown) {
            for (int v = 0; v < VECS; ++v) state.sum[v] += sum[v];
            break;
        }
        for (int v = 0; v < VECS; ++v) {
            const Vec more = select(top[v] > splat(state.OUTGROWN), top[v], Vec{});
            const Vec factor = exp2(-more);
            state.shift[v] += more;
            state.sum[v] *= factor;
            for (int dim = 0; dim < V_DIM; ++dim) out[dim * VECS + v] *= factor;
        }
    }
    add_values<V_DIM, VALUE_FLOATS, VECS>(seen.values, weights, out, begin, end);
}

// out[V_DIM][VECS] = softmax attention of the rows; `state` and `out` come in with the row's own key counted or not.
template <int QK_DIM, int V_DIM, int KEY_FLOATS, int VALUE_FLOATS, int VECS, bool CAUSAL, int BIAS>
INLINE void softmax_attention(const Keys& seen, const Vec* q, float bias_scale, Vec* weights, Vec* out,
                              SoftmaxSums<VECS>& state) {
    for (int begin = 0; begin < seen.count; begin += KEY_CHUNK) {
        const int end = begin + KEY_CHUNK < seen.count ? begin + KEY_CHUNK : seen.count;
        if (CAUSAL && end > seen.first_row)
            softmax_chunk<QK_DIM, V_DIM, KEY_FLOATS, VALUE_FLOATS, VECS, CAUSAL, BIAS>(seen, q, bias_scale, weights,
                                                                                      out, state, begin, end);
        else
            softmax_chunk<QK_DIM, V_DIM, KEY_FLOATS, VALUE_FLOATS, VECS, false, BIAS>(seen, q, bias_scale, weights,
                                                                                     out, state, begin, end);
    }
    for (int v = 0; v < VECS; ++v) {
        const Vec share = splat(1.0f) / state.sum[v];
        for (int dim = 0; dim < V_DIM; ++dim) out[dim * VECS + v] *= share;
    }
}

// out[V_DIM][VECS] += sum over keys of silu(q . key) value: attention without softmax, as HSTU has it.
template <int QK_DIM, int V_DIM, int KEY_FLOATS, int VALUE_FLOATS, int VECS, bool CAUSAL>
INLINE void pointwise_attention(const Keys& seen, const Vec* q, Vec* weights, Vec* out) {
    for (int begin = 0; begin < seen.count; begin += KEY_CHUNK) {
        const int end = begin + KEY_CHUNK < seen.count ? begin + KEY_CHUNK : seen.count;
        weigh_chunk<QK_DIM, KEY_FLOATS, VECS>(
            seen.keys, q, weights, begin, end, [](int, int) INLINE_LAMBDA { return Vec{}; },
            [&](int key, int v, Vec score) INLINE_LAMBDA {
                if constexpr (CAUSAL) return select(rows_from(seen.first_row, v) >= key, silu(score), Vec{});
                return silu(score);
            });
        add_values<V_DIM, VALUE_FLOATS, VECS>(seen.values, weights, out, begin, end);
    }
}

}  // namespace flame
