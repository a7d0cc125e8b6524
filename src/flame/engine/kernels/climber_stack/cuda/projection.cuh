// Queries, keys and values of 16 rows, one head at a time.
#pragma once
#include "rows.cuh"

// Four matrices, one behind the other, as two B fragments
template <bool SHARED>
DEVICE uint4 fragments(const char* from, int lane) {
  if (SHARED) return load_matrices(from + lane * 16);
  const u32* p = reinterpret_cast<const u32*>(from) + lane;
  return make_uint4(p[0], p[MATRIX / 4], p[2 * MATRIX / 4], p[3 * MATRIX / 4]);
}

// 32 columns: bias first, then the columns of x in order. `w` is in shared or in global memory.
template <bool SHARED = true>
DEVICE void project(float (&acc)[4][4], const u32 (&x)[STEPS][4], const char* w, const char* bias, int lane) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 b = reinterpret_cast<const float2*>(bias + j * 32)[lane & 3];
    acc[j][0] = acc[j][2] = b.x;
    acc[j][1] = acc[j][3] = b.y;
  }
#pragma unroll
  for (int k = 0; k < HEADS; k++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint4 v = fragments<SHARED>(w + (j * HEADS + k) * (4 * MATRIX), lane);
      mma(acc[j], x[2 * k], v.x, v.y);
      mma(acc[j], x[2 * k + 1], v.z, v.w);
    }
}

// Where a head's parts stand behind its keys' weights
template <bool SHARED = true>
DEVICE void project_keys(float (&acc)[4][4], const u32 (&x)[STEPS][4], const char* w, int lane) {
  project<SHARED>(acc, x, w, w + 2 * PROJECTION, lane);
}
template <bool SHARED = true>
DEVICE void project_values(float (&acc)[4][4], const u32 (&x)[STEPS][4], const char* w, int lane) {
  project<SHARED>(acc, x, w + PROJECTION, w + 2 * PROJECTION + BIAS, lane);
}

// Accumulators of 32 columns as two A fragments
DEVICE void to_fragments(u32 (&a)[2][4], const float (&c)[4][4]) {
#pragma unroll
  for (int t = 0; t < 2; t++) {
    a[t][0] = pack(c[2 * t][0], c[2 * t][1]);
    a[t][1] = pack(c[2 * t][2], c[2 * t][3]);
    a[t][2] = pack(c[2 * t + 1][0], c[2 * t + 1][1]);
    a[t][3] = pack(c[2 * t + 1][2], c[2 * t + 1][3]);
  }
}

// Keys of 16 rows into their unit, and values behind them: a matrix of 8 x 8 is what a warp holds of a column tile
DEVICE void store_keys(char* to, const float (&c)[4][4], int lane) {
  u32* first = reinterpret_cast<u32*>(to) + lane;
  u32* second = reinterpret_cast<u32*>(to + HALF_UNIT) + lane;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    first[j * LANES] = pack(c[j][0], c[j][1]);
    second[j * LANES] = pack(c[j][2], c[j][3]);
  }
}
DEVICE void store_values(char* to, const float (&c)[4][4], int lane) { store_keys(to + VALUES, c, lane); }

// Queries times log2(e) / temperature, from their accumulators
DEVICE void scale_queries(u32 (&q)[2][4], float (&a)[4][4], float scale) {
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) a[j][i] = __fmul_rn(a[j][i], scale);
  to_fragments(q, a);
}
template <bool SHARED = true>
DEVICE void make_queries(u32 (&q)[2][4], const u32 (&x)[STEPS][4], const char* w, float scale, int lane) {
  float a[4][4];
  project<SHARED>(a, x, w, w + PROJECTION, lane);
  scale_queries(q, a, scale);
}
