// Products of a warpgroup's 64 rows with matrices in shared memory, and what is done with rows in registers. Lane 4 g + t has
// of a warp's 16 rows g and g + 8; of tile j of 8 columns 2t and 2t + 1.
#pragma once
#include "wgmma.cuh"

constexpr int LANES = 32;
constexpr int GROUP_WARPS = 4;
constexpr int MATRIX = 128;  // bytes
constexpr float LOG2_E = 1.4426950408889634f;

// Accumulators start from a row of fp32
template <int TILES>
DEVICE void start_from(float (&c)[TILES][4], const char* row, int lane) {
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    const float2 b = reinterpret_cast<const float2*>(row + j * 32)[lane & 3];
    c[j][0] = c[j][2] = b.x;
    c[j][1] = c[j][3] = b.y;
  }
  hold(c);
}
// c += a b, as a group of products; b has all steps of the sum by 8 columns
template <int TILES, int STEPS>
DEVICE void issue(float (&c)[TILES][4], const u32 (&a)[STEPS][4], const char* matrix) {
  const Matrices b(matrix, MATRIX, STEPS * 2 * MATRIX);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < STEPS; k++) wgmma(c, a[k], b + k * 2 * MATRIX);
  wgmma_commit();
}
// Accumulators as operands of the next product
template <int TILES>
DEVICE void operands(u32 (&a)[TILES / 2][4], const float (&c)[TILES][4]) {
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    a[j / 2][2 * (j & 1)] = pack(c[j][0], c[j][1]);
    a[j / 2][2 * (j & 1) + 1] = pack(c[j][2], c[j][3]);
  }
}
template <int TILES>
DEVICE void relu_operands(u32 (&a)[TILES / 2][4], const float (&c)[TILES][4]) {
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    a[j / 2][2 * (j & 1)] = pack_relu(c[j][0], c[j][1]);
    a[j / 2][2 * (j & 1) + 1] = pack_relu(c[j][2], c[j][3]);
  }
}
// Two rows of bf16 as operands
template <int STEPS>
DEVICE void load_rows(u32 (&a)[STEPS][4], const char* first, const char* second, int lane) {
  const u32 *p = reinterpret_cast<const u32*>(first) + (lane & 3), *q = reinterpret_cast<const u32*>(second) + (lane & 3);
#pragma unroll
  for (int k = 0; k < STEPS; k++) {
    a[k][0] = p[8 * k];
    a[k][1] = q[8 * k];
    a[k][2] = p[8 * k + 4];
    a[k][3] = q[8 * k + 4];
  }
}
// The same of rows whose columns lie in the order of lanes: of 32 columns, what a lane has of four tiles is together
template <int STEPS>
DEVICE void load_lanes(u32 (&a)[STEPS][4], const char* first, const char* second, int lane) {
#pragma unroll
  for (int k = 0; k < STEPS; k += 2) {
    const uint4 p = reinterpret_cast<const uint4*>(first)[2 * k + (lane & 3)], q = reinterpret_cast<const uint4*>(second)[2 * k + (lane & 3)];
    a[k][0] = p.x, a[k][2] = p.y, a[k + 1][0] = p.z, a[k + 1][2] = p.w;
    a[k][1] = q.x, a[k][3] = q.y, a[k + 1][1] = q.z, a[k + 1][3] = q.w;
  }
}

DEVICE float sigmoid(float v) { return reciprocal(1.f + power_of_two(-LOG2_E * v)); }
