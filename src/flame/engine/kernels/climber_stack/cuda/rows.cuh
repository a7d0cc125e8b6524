// 16 rows of x as A fragments: from and to global memory, and in shared memory.
#pragma once
#include "tiles.cuh"

// Rows that are not live become zeros, whatever they hold
DEVICE void load_rows(u32 (&x)[STEPS][4], const char* from, int row, int live, int lane) {
  const int r0 = row + (lane >> 2), r1 = r0 + 8;
  const u32* p = reinterpret_cast<const u32*>(from);
#pragma unroll
  for (int t = 0; t < STEPS; t++) {
    const int c = t * 8 + (lane & 3);
    x[t][0] = r0 < live ? p[r0 * ROW_WORDS + c] : 0;
    x[t][1] = r1 < live ? p[r1 * ROW_WORDS + c] : 0;
    x[t][2] = r0 < live ? p[r0 * ROW_WORDS + c + 4] : 0;
    x[t][3] = r1 < live ? p[r1 * ROW_WORDS + c + 4] : 0;
  }
}

DEVICE void store_rows(char* to, const u32 (&x)[STEPS][4], int row, int live, int lane) {
  const int r0 = row + (lane >> 2), r1 = r0 + 8;
  u32* p = reinterpret_cast<u32*>(to);
#pragma unroll
  for (int t = 0; t < STEPS; t++) {
    const int c = t * 8 + (lane & 3);
    if (r0 < live) {
      p[r0 * ROW_WORDS + c] = x[t][0];
      p[r0 * ROW_WORDS + c + 4] = x[t][2];
    }
    if (r1 < live) {
      p[r1 * ROW_WORDS + c] = x[t][1];
      p[r1 * ROW_WORDS + c + 4] = x[t][3];
    }
  }
}

DEVICE void get(u32 (&f)[4], const uint4* from) {
  const uint4 v = *from;
  f[0] = v.x;
  f[1] = v.y;
  f[2] = v.z;
  f[3] = v.w;
}
DEVICE void put(uint4* to, const u32 (&f)[4]) { *to = make_uint4(f[0], f[1], f[2], f[3]); }

// `from` and `to` are the lane's first uint4
DEVICE void get_rows(u32 (&x)[STEPS][4], const uint4* from) {
#pragma unroll
  for (int t = 0; t < STEPS; t++) get(x[t], from + LANES * t);
}
DEVICE void put_rows(uint4* to, const u32 (&x)[STEPS][4]) {
#pragma unroll
  for (int t = 0; t < STEPS; t++) put(to + LANES * t, x[t]);
}
