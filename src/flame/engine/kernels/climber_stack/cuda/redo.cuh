// Rows of a head whose total left fp32's range, once more under their true maximum.
#pragma once
#include "attention.cuh"

// What one head of 16 rows takes of memory
struct HeadOfRows {
  const uint4* x;       // in shared memory, the lane's first uint4
  const char* weights;  // the head's, in global memory
  const char* keys;     // the head's, in global memory
  int length, head;
  int unit;             // among the history's 16s, where the rows are events
  float scale;
  bool candidates;
};

// Keys and values of 16 rows in global memory
struct Unit {
  u32 keys[2][4], values[2][4];  // rows from 0 and from 8 on; column tiles

  DEVICE void load(const char* p) {
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        keys[half][j] = load_l2(p + half * HALF_UNIT + j * MATRIX);
        values[half][j] = load_l2(p + half * HALF_UNIT + j * MATRIX + VALUES);
      }
  }
  DEVICE uint4 key_fragments(int half) const { return make_uint4(keys[half][0], keys[half][1], keys[half][2], keys[half][3]); }
  // Of column tiles j and j + 1
  DEVICE uint4 value_fragments(int j) const {
    return make_uint4(transpose(values[0][j]), transpose(values[1][j]), transpose(values[0][j + 1]), transpose(values[1][j + 1]));
  }
};

// A row under its running maximum `top`; or, where it was good, without one, to the bits it had
DEVICE void lower(float& top, float& factor, float& s0, float& s1, float& s2, float& s3, bool good) {
  const float before = top, now = fmaxf(before, quad_max(fmaxf(fmaxf(s0, s1), fmaxf(s2, s3))));
  factor = good ? 1.f : power_of_two(__fsub_rn(before, now));
  top = good ? 0.f : now;
  s0 = __fsub_rn(s0, top);
  s1 = __fsub_rn(s1, top);
  s2 = __fsub_rn(s2, top);
  s3 = __fsub_rn(s3, top);
}

// y of a head of 16 rows of which some (those not `good`) left the range: they get their maximum, the others the same bits
// as before. Seldom called, so it keeps out of the way: all it needs comes from memory, keys and values from global memory
// as the ring has moved on.
__device__ __noinline__ void redo(u32 (&y)[2][4], const HeadOfRows& rows, bool good0, bool good1) {
  const int lane = threadIdx.x % LANES;
  u32 q[2][4];
  Attention a;
  float top[2] = {NOTHING, NOTHING};
  a.init();
  {
    u32 x[STEPS][4];
    get_rows(x, rows.x);
    make_queries<false>(q, x, rows.weights, rows.scale, lane);
    if (rows.candidates) {
      float own[2];
      own_keys_and_values<false>(a, own, q, x, rows.weights + QUERY_BYTES, lane);
      top[0] = own[0];
      top[1] = own[1];
      own[0] = good0 ? power_of_two(top[0]) : 1.f;
      own[1] = good1 ? power_of_two(top[1]) : 1.f;
      a.start_with_own(own);
    }
  }
  if (!rows.candidates) {
    float shift[2];
    logit_of_key(shift, q, first_key(rows.keys + rows.unit * UNIT_BYTES, lane));
    a.shift(shift);
  }
  Unit unit, after, far;
  const char* p = rows.keys + lane * 4;
  if (rows.length > 0) unit.load(p);
  if (rows.length > UNIT) after.load(p + UNIT_BYTES);
#pragma unroll 1
  for (int left = rows.length; left > 0; left -= UNIT, p += UNIT_BYTES) {
    if (left > 2 * UNIT) far.load(p + 2 * UNIT_BYTES);
    float s0[4], s1[4], factor[2];
    u32 weights[4];
    logits<true>(s0, s1, q, unit.key_fragments(0), unit.key_fragments(1), a.start, left, lane);
    lower(top[0], factor[0], s0[0], s0[1], s1[0], s1[1], good0);
    lower(top[1], factor[1], s0[2], s0[3], s1[2], s1[3], good1);
#pragma unroll
    for (int i = 0; i < 4; i++) a.total[0][i] = __fmul_rn(a.total[0][i], factor[i >> 1]);
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) a.out[j][i] = __fmul_rn(a.out[j][i], factor[i >> 1]);
    weigh(weights, s0, s1);
    add_values(a.out, a.total[0], weights, unit.value_fragments(0), unit.value_fragments(2));
    unit = after;
    after = far;
  }
  float sums[2];
  row_totals(sums, a);
  add_residual(y, a.out, sums, rows.x + 2 * rows.head * LANES);
}
