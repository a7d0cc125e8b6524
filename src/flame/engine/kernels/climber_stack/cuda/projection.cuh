// Queries, keys and values of MT tiles of 16 rows, one head at a time.
#pragma once
#include "rows.cuh"

// 32 columns: bias first, then the columns of x in order. `w` is in shared or global memory.
template <int MT>
DEVICE void project(float (&acc)[MT][4][4], const u32 (&x)[MT][STEPS][4], const char* w, const char* bias, int lane) {
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 b = reinterpret_cast<const float2*>(bias + j * 32)[lane & 3];
#pragma unroll
    for (int m = 0; m < MT; m++) {
      acc[m][j][0] = acc[m][j][2] = b.x;
      acc[m][j][1] = acc[m][j][3] = b.y;
    }
  }
#pragma unroll
  for (int k = 0; k < HEADS; k++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint4 v = reinterpret_cast<const uint4*>(w)[(j * HEADS + k) * LANES + lane];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        mma(acc[m][j], x[m][2 * k], v.x, v.y);
        mma(acc[m][j], x[m][2 * k + 1], v.z, v.w);
      }
    }
}

// Where a head's parts stand behind its keys' weights
template <int MT>
DEVICE void project_keys(float (&acc)[MT][4][4], const u32 (&x)[MT][STEPS][4], const char* w, int lane) {
  project<MT>(acc, x, w, w + 2 * PROJECTION, lane);
}
template <int MT>
DEVICE void project_values(float (&acc)[MT][4][4], const u32 (&x)[MT][STEPS][4], const char* w, int lane) {
  project<MT>(acc, x, w + PROJECTION, w + 2 * PROJECTION + BIAS, lane);
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

// Keys of 16 rows as B fragments of q k^T, 1 KB: accumulators are in that order already
DEVICE void store_keys(char* to, const float (&c)[4][4], int lane) {
  uint4* d = reinterpret_cast<uint4*>(to) + lane;
  d[0] = make_uint4(pack(c[0][0], c[0][1]), pack(c[1][0], c[1][1]), pack(c[2][0], c[2][1]), pack(c[3][0], c[3][1]));
  d[32] = make_uint4(pack(c[0][2], c[0][3]), pack(c[1][2], c[1][3]), pack(c[2][2], c[2][3]), pack(c[3][2], c[3][3]));
}
// Values of 16 rows as B fragments of p v, 1 KB behind the keys
DEVICE void store_values(char* to, const float (&c)[4][4], int lane) {
  uint4* d = reinterpret_cast<uint4*>(to + UNIT_BYTES / 2) + lane;
  d[0] = make_uint4(transpose(pack(c[0][0], c[0][1])), transpose(pack(c[0][2], c[0][3])),
                    transpose(pack(c[1][0], c[1][1])), transpose(pack(c[1][2], c[1][3])));
  d[32] = make_uint4(transpose(pack(c[2][0], c[2][1])), transpose(pack(c[2][2], c[2][3])),
                     transpose(pack(c[3][0], c[3][1])), transpose(pack(c[3][2], c[3][3])));
}

// Queries times log2(e) / temperature
template <int MT>
DEVICE void make_queries(u32 (&q)[MT][2][4], const u32 (&x)[MT][STEPS][4], const char* w, float scale, int lane) {
  float a[MT][4][4];
  project<MT>(a, x, w, w + PROJECTION, lane);
#pragma unroll
  for (int m = 0; m < MT; m++) {
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) a[m][j][i] = __fmul_rn(a[m][j][i], scale);
    to_fragments(q[m], a[m]);
  }
}
