// LayerNorm of the rows of a tile.
#pragma once

#include "vec.h"

namespace flame {

// Mean and 1 / sqrt(variance + eps) of each row of x[N][VECS].
template <int VECS>
struct Moments {
    Vec mean[VECS];
    Vec scale[VECS];
};

template <int N, int VECS>
INLINE Moments<VECS> moments(const Vec* x, float eps) {
    Moments<VECS> found;
    Vec sum[VECS] = {}, squares[VECS] = {};
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECS; ++v) sum[v] += x[n * VECS + v];
    for (int v = 0; v < VECS; ++v) found.mean[v] = sum[v] * splat(1.0f / N);
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECS; ++v) {
            const Vec off = x[n * VECS + v] - found.mean[v];
            squares[v] = fma(off, off, squares[v]);
        }
    for (int v = 0; v < VECS; ++v)
        found.scale[v] = splat(1.0f) / root(fma(squares[v], splat(1.0f / N), splat(eps)));
    return found;
}

// store(n, v, norm(x)[n][v]) for x[N][VECS].
template <int N, int VECS, class Store>
INLINE void layer_norm(const Vec* x, const float* weight, const float* bias, float eps, Store&& store) {
    const Moments<VECS> found = moments<N, VECS>(x, eps);
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < VECS; ++v) {
            const Vec normal = (x[n * VECS + v] - found.mean[v]) * found.scale[v];
            store(n, v, fma(normal, splat(weight[n]), splat(bias[n])));
        }
}

}  // namespace flame
