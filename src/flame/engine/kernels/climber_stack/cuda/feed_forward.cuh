// The feed-forward half of a layer: x' = y + norm(relu(y W1 + b1) W2 + b2).
#pragma once
#include "projection.cuh"

// 16 hidden columns, as an A fragment of the second product
DEVICE void hidden(u32 (&g)[4], const u32 (&y)[STEPS][4], const char* w, const char* bias, int lane) {
  float c[2][4];
#pragma unroll
  for (int t = 0; t < 2; t++) {
    const float2 b = reinterpret_cast<const float2*>(bias + t * 32)[lane & 3];
    c[t][0] = c[t][2] = b.x;
    c[t][1] = c[t][3] = b.y;
  }
#pragma unroll
  for (int k = 0; k < HEADS; k++)
#pragma unroll
    for (int t = 0; t < 2; t++) {
      const uint4 v = fragments<true>(w + (t * HEADS + k) * (4 * MATRIX), lane);
      mma(c[t], y[2 * k], v.x, v.y);
      mma(c[t], y[2 * k + 1], v.z, v.w);
    }
  g[0] = pack_relu(c[0][0], c[0][1]);
  g[1] = pack_relu(c[0][2], c[0][3]);
  g[2] = pack_relu(c[1][0], c[1][1]);
  g[3] = pack_relu(c[1][2], c[1][3]);
}

// Parts of a stage: weights and bias of step s (16 hidden columns), weights of the second product, behind them the norm's
DEVICE const char* first_weights(const char* stage, int s) { return stage + s * 32 * DIM; }
DEVICE const char* first_bias(const char* stage, int s) { return stage + 2 * FIRST_BYTES + s * 64; }
DEVICE const char* second_weights(const char* stage) { return stage + FIRST_BYTES; }
DEVICE const float2* norm_parameters(const char* stage) { return reinterpret_cast<const float2*>(stage + FFN_BYTES); }

// `a` is the second product of 16 rows without its bias; eps 1e-5
DEVICE void add_norm(u32 (&x)[STEPS][4], const u32 (&y)[STEPS][4], float (&a)[COLUMNS][4], const float2* parameters, int lane) {
  const float2* p = parameters + (lane & 3);
  float mean0 = 0.f, mean1 = 0.f, square0 = 0.f, square1 = 0.f;
#pragma unroll
  for (int j = 0; j < COLUMNS; j++) {
    const float2 b = p[j * 4];
    a[j][0] = __fadd_rn(a[j][0], b.x);
    a[j][1] = __fadd_rn(a[j][1], b.y);
    a[j][2] = __fadd_rn(a[j][2], b.x);
    a[j][3] = __fadd_rn(a[j][3], b.y);
    mean0 = __fadd_rn(mean0, __fadd_rn(a[j][0], a[j][1]));
    mean1 = __fadd_rn(mean1, __fadd_rn(a[j][2], a[j][3]));
  }
  mean0 = __fmul_rn(quad_sum(mean0), 1.f / DIM);
  mean1 = __fmul_rn(quad_sum(mean1), 1.f / DIM);
#pragma unroll
  for (int j = 0; j < COLUMNS; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      a[j][i] = __fsub_rn(a[j][i], mean0);
      square0 = __fmaf_rn(a[j][i], a[j][i], square0);
      a[j][i + 2] = __fsub_rn(a[j][i + 2], mean1);
      square1 = __fmaf_rn(a[j][i + 2], a[j][i + 2], square1);
    }
  const float scale0 = reciprocal_root(__fmaf_rn(quad_sum(square0), 1.f / DIM, 1e-5f));
  const float scale1 = reciprocal_root(__fmaf_rn(quad_sum(square1), 1.f / DIM, 1e-5f));
#pragma unroll
  for (int j = 0; j < COLUMNS; j++) {
    const float2 w = p[DIM / 2 + j * 4], b = p[DIM + j * 4];
    const u32 y0 = y[j >> 1][(j & 1) * 2], y1 = y[j >> 1][(j & 1) * 2 + 1];
    const float n0 = __fmaf_rn(__fmul_rn(a[j][0], scale0), w.x, b.x), n1 = __fmaf_rn(__fmul_rn(a[j][1], scale0), w.y, b.y);
    const float n2 = __fmaf_rn(__fmul_rn(a[j][2], scale1), w.x, b.x), n3 = __fmaf_rn(__fmul_rn(a[j][3], scale1), w.y, b.y);
    x[j >> 1][(j & 1) * 2] = pack(__fadd_rn(low(y0), n0), __fadd_rn(high(y0), n1));
    x[j >> 1][(j & 1) * 2 + 1] = pack(__fadd_rn(low(y1), n2), __fadd_rn(high(y1), n3));
  }
}
