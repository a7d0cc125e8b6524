// The feed-forward half of a layer for 64 rows of a warpgroup: a stage's first product is under way while the hidden columns
// of the one before are packed.
#pragma once
#include "feed_forward.cuh"
#include "wide_products.cuh"

constexpr int HIDDEN_TILES = HIDDEN / 8;

DEVICE void issue_first(float (&c)[HIDDEN_TILES][4], const u32 (&y)[STEPS][4], const char* stage, int lane) {
  start_from(c, first_bias(stage, 0), lane);
  wgmma_fence();
  issue_columns(c, y, stage);
}
DEVICE void pack_hidden(u32 (&h)[HIDDEN_STEPS][4], float (&c)[HIDDEN_TILES][4]) {
  hold(c);
#pragma unroll
  for (int s = 0; s < HIDDEN_STEPS; s++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float* v = c[2 * s + (k >> 1)] + (k & 1) * 2;
      h[s][k] = pack_relu(v[0], v[1]);
    }
}
DEVICE void issue_second(float (&a)[COLUMNS][4], const u32 (&h)[HIDDEN_STEPS][4], const char* stage) {
  const Matrices b(second_weights(stage), MATRIX, 2 * MATRIX);
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < HIDDEN_STEPS; s++) wgmma(a, h[s], b + s * COLUMNS * 2 * MATRIX);
  wgmma_commit();
}
DEVICE void start_second(float (&a)[COLUMNS][4]) {
#pragma unroll
  for (int j = 0; j < COLUMNS; j++) a[j][0] = a[j][1] = a[j][2] = a[j][3] = 0.f;
  hold(a);
}

// The second product without its bias. The last stage is kept, the norm's parameters are in it.
DEVICE void overlapped_stages(float (&a)[COLUMNS][4], const u32 (&y)[STEPS][4], const Ring& ring, Position& place, int lane) {
  float c[2][HIDDEN_TILES][4];
  u32 h[2][HIDDEN_STEPS][4];
  const char* w = ring.wait(place);
  issue_first(c[0], y, w, lane);
  start_second(a);
  wgmma_wait<0>();
  Position before = place;
#pragma unroll
  for (int stage = 0; stage < FFN_STAGES; stage++) {
    Position next = place;
    const char* next_w = w;
    if (stage + 1 < FFN_STAGES) {
      next.next();
      next_w = ring.wait(next);
      issue_first(c[(stage + 1) & 1], y, next_w, lane);
    }
    pack_hidden(h[stage & 1], c[stage & 1]);
    issue_second(a, h[stage & 1], w);
    if (stage + 1 < FFN_STAGES)
      wgmma_wait<1>();
    else
      wgmma_wait<0>();
    if (stage > 0) ring.release(before, lane);  // its second product is done
    before = place;
    place = next;
    w = next_w;
  }
  hold(a);
}
// The same with half the registers: where other warpgroups fill the gaps, or stages are many. Unrolled, so that the compiler
// sees that a warp's lanes stand at the same slot.
DEVICE void single_stages(float (&a)[COLUMNS][4], const u32 (&y)[STEPS][4], const Ring& ring, Position& place, int lane) {
  float c[HIDDEN_TILES][4];
  u32 h[HIDDEN_STEPS][4];
  const char* w = ring.wait(place);
  issue_first(c, y, w, lane);
  start_second(a);
  wgmma_wait<0>();
#pragma unroll (FFN_STAGES > 8 ? 1 : FFN_STAGES)
  for (int stage = 0; stage < FFN_STAGES - 1; stage++) {
    Position next = place;
    next.next();
    const char* next_w = ring.wait(next);
    pack_hidden(h, c);
    issue_second(a, h, w);
    issue_first(c, y, next_w, lane);
    wgmma_wait<0>();
    ring.release(place, lane);
    place = next;
    w = next_w;
  }
  pack_hidden(h, c);
  issue_second(a, h, w);
  wgmma_wait<0>();
  hold(a);
}
