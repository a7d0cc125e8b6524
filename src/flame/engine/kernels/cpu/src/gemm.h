// Matrix products on row tiles.
//
// A row tile is `[features][VECS]` vectors: one lane is one row, so a product, a norm and a softmax of a row never
// leave its lane. The weight matrix stays as PyTorch has it, `[outputs][inputs]`, and is read by broadcasts.
#pragma once

#include <type_traits>

#include "vec.h"

namespace flame {

template <int N>
using Constant = std::integral_constant<int, N>;

// Most vectors in a row tile: 24 or 12 sums in registers then take few enough loads for each multiplication.
#ifndef FLAME_TILE
constexpr int TILE = REGISTERS >= 32 ? 4 : 2;
#else
constexpr int TILE = FLAME_TILE;
#endif

// Outputs whose sums are kept in registers at a time, leaving room for one column of the tile and one weight.
template <int VECS>
constexpr int PANEL = (REGISTERS * 3 / 4) / VECS;

// Calls `body(Constant<rows>, first row)` for panels that cover N rows, as equal in height as they can be.
template <int N, int VECS, class Body>
INLINE void panels(Body&& body) {
    constexpr int count = (N + PANEL<VECS> - 1) / PANEL<VECS>;
    constexpr int height = N / count, taller = N % count;
    int row = 0;
    if constexpr (taller > 0) {
        for (int panel = 0; panel < taller; ++panel, row += height + 1) body(Constant<height + 1>{}, row);
    }
    for (int panel = taller; panel < count; ++panel, row += height) body(Constant<height>{}, row);
}

// sums[m][v] += sum over k of a[m * STEP_M + k * STEP_K] * b[k][v], k ascending.
template <int STEP_M, int STEP_K, int M, int VECS>
INLINE void multiply(Vec (&sums)[M][VECS], const float* a, const Vec* b, int depth) {
#pragma GCC unroll 2
    for (int k = 0; k < depth; ++k) {
        Vec column[VECS];
#pragma GCC unroll 8
        for (int v = 0; v < VECS; ++v) column[v] = b[k * VECS + v];
#pragma GCC unroll 32
        for (int m = 0; m < M; ++m) {
            const Vec weight = splat(a[m * STEP_M + k * STEP_K]);
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) sums[m][v] = fma(weight, column[v], sums[m][v]);
        }
    }
}

// store(n, v, start(n, v) + sum over k of weight[n][k] * x[k][v]) for all N outputs; rows of `weight` lie STRIDE apart.
template <int N, int K, int VECS, int STRIDE = K, class Start, class Store>
INLINE void product(const float* weight, const Vec* x, Start&& start, Store&& store) {
    panels<N, VECS>([&](auto rows, int first) INLINE_LAMBDA {
        Vec sums[rows][VECS];
#pragma GCC unroll 32
        for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) sums[m][v] = start(first + m, v);
        multiply<STRIDE, 1>(sums, weight + first * STRIDE, x, K);
#pragma GCC unroll 32
        for (int m = 0; m < rows; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < VECS; ++v) store(first + m, v, sums[m][v]);
    });
}

// y = weight x + bias, then `after` on each value.
template <int N, int K, int VECS, class After>
INLINE void linear(const float* weight, const float* bias, const Vec* x, Vec* y, After&& after) {
    product<N, K, VECS>(
        weight, x, [&](int n, int) INLINE_LAMBDA { return splat(bias[n]); },
        [&](int n, int v, Vec value) INLINE_LAMBDA { y[n * VECS + v] = after(value); });
}

INLINE Vec same(Vec value) { return value; }

INLINE Vec relu(Vec value) { return larger(value, Vec{}); }

}  // namespace flame
