// Attention of 16 rows to one head's keys, 16 keys at a time from the first on.
//
// Weights are 2^(s - shift). The shift of a row is its logit with one key that is at hand before the others': a candidate's
// own, or for an event that of the first of its 16 rows; and 0 where that is near 0, as nearly all are. It takes away what a
// row's logits have in common, which without a maximum could leave fp32's range. Totals that leave it nevertheless are seen,
// and `redo` takes such rows under their true maximum. What a row gets depends on its own history, or on the candidate and
// the history, alone.
#pragma once
#include "projection.cuh"

// 2^-100 .. 2^100: nothing overflows (values below 2^27), and what becomes zero is below 2^-26 of the total
constexpr float LEAST_TOTAL = 7.888609052210118e-31f;
constexpr float MOST_TOTAL = 1.2676506002282294e30f;
constexpr float NEAR = 24.f;
#define NOTHING __int_as_float(0xff800000)  // minus infinity
constexpr u32 ONES = 0x3f803f80;            // two bf16

struct Attention {
  float out[4][4];    // sum of p v; a candidate's starts with its own
  float total[1][4];  // sum of p, as an accumulator of 8 columns, which are the same
  float start[4];     // minus the shift, as an accumulator of logits starts

  DEVICE void init() {
    total[0][0] = total[0][1] = total[0][2] = total[0][3] = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0.f;
  }
  DEVICE void shift(const float (&logits)[2]) {
    start[0] = start[1] = fabsf(logits[0]) > NEAR ? -logits[0] : 0.f;
    start[2] = start[3] = fabsf(logits[1]) > NEAR ? -logits[1] : 0.f;
  }
  // `out` is the rows' own values, which get these weights
  DEVICE void start_with_own(const float (&weights)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      total[0][i] = weights[i >> 1];
#pragma unroll
      for (int j = 0; j < 4; j++) out[j][i] = __fmul_rn(out[j][i], weights[i >> 1]);
    }
  }
};

// Logits of 16 candidates with their own keys, which are rounded as keys in memory are
DEVICE void logit_of_itself(float (&logits)[2], const u32 (&q)[2][4], const float (&k)[4][4]) {
  u32 f[2][4];
  to_fragments(f, k);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float s = 0.f;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const u32 qq = q[j >> 1][(j & 1) * 2 + r], kk = f[j >> 1][(j & 1) * 2 + r];
      s = __fmaf_rn(low(qq), low(kk), s);
      s = __fmaf_rn(high(qq), high(kk), s);
    }
    logits[r] = quad_sum(s);
  }
}
// Candidates' own values into `out`, and their logits with themselves, after the shift
template <bool SHARED = true>
DEVICE void own_keys_and_values(Attention& a, float (&own)[2], const u32 (&q)[2][4], const u32 (&x)[STEPS][4],
                                const char* w, int lane) {
  float k[4][4];
  project_keys<SHARED>(k, x, w, lane);
  logit_of_itself(own, q, k);
  a.shift(own);
#pragma unroll
  for (int r = 0; r < 2; r++) own[r] = __fadd_rn(own[r], a.start[2 * r]);
  project_values<SHARED>(a.out, x, w, lane);
}
DEVICE void attend_itself(Attention& a, const u32 (&q)[2][4], const u32 (&x)[STEPS][4], const char* w, int lane) {
  float own[2];
  own_keys_and_values(a, own, q, x, w, lane);
#pragma unroll
  for (int r = 0; r < 2; r++) own[r] = power_of_two(own[r]);
  a.start_with_own(own);
}

// An event's logit with the first key of its 16 rows. `keys` points at the keys of the head of these rows; they were stored
// by this CTA, so they are there.
DEVICE uint4 first_key(const char* keys, int lane) {
  const char* p = keys + (lane & 3) * 4;
  return make_uint4(load_l2(p), load_l2(p + MATRIX), load_l2(p + 2 * MATRIX), load_l2(p + 3 * MATRIX));
}
// All columns of the fragment are the same key, so every lane gets its rows' logits
DEVICE void logit_of_key(float (&logits)[2], const u32 (&q)[2][4], uint4 key) {
  float s[4] = {0.f, 0.f, 0.f, 0.f};
  mma(s, q[0], key.x, key.y);
  mma(s, q[1], key.z, key.w);
  logits[0] = s[0];
  logits[1] = s[2];
}

// Logits minus the shift, of 16 keys; those from `keys` on are nothing
template <bool MASKED>
DEVICE void logits(float (&s0)[4], float (&s1)[4], const u32 (&q)[2][4], uint4 k0, uint4 k1, const float (&start)[4], int keys, int lane) {
  mma_from(s0, q[0], k0.x, k0.y, start);
  mma_from(s1, q[0], k1.x, k1.y, start);
  mma(s0, q[1], k0.z, k0.w);
  mma(s1, q[1], k1.z, k1.w);
  if (MASKED) {
    const int key = 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s0[i] = key + (i & 1) < keys ? s0[i] : NOTHING;
      s1[i] = key + 8 + (i & 1) < keys ? s1[i] : NOTHING;
    }
  }
}

// Logits become weights, as an A fragment
DEVICE void weigh(u32 (&p)[4], float (&s0)[4], float (&s1)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    s0[i] = power_of_two(s0[i]);
    s1[i] = power_of_two(s1[i]);
  }
  p[0] = pack(s0[0], s0[1]);
  p[1] = pack(s0[2], s0[3]);
  p[2] = pack(s1[0], s1[1]);
  p[3] = pack(s1[2], s1[3]);
}
// What 16 keys add: their values by weight, and the weights, whose sum is a product with a matrix of ones
DEVICE void add_values(float (&out)[4][4], float (&total)[4], const u32 (&p)[4], uint4 v0, uint4 v1) {
  mma(total, p, ONES, ONES);
  mma(out[0], p, v0.x, v0.y);
  mma(out[1], p, v0.z, v0.w);
  mma(out[2], p, v1.x, v1.y);
  mma(out[3], p, v1.z, v1.w);
}

// The lane's rows of the matrices of a unit in shared memory: keys by 8 rows; values by 16 rows and 16 columns
struct Rows {
  const char *keys, *values;
  DEVICE Rows(const char* unit, int lane)
      : keys(unit + lane * 16), values(unit + VALUES + (lane >> 3 & 1) * HALF_UNIT + (lane >> 4) * MATRIX + (lane & 7) * 16) {}
  DEVICE void next() {
    keys += UNIT_BYTES;
    values += UNIT_BYTES;
  }
};

template <bool MASKED>
DEVICE void attend_unit(Attention& a, const u32 (&q)[2][4], const Rows& unit, int keys, int lane) {
  const uint4 k0 = load_matrices(unit.keys), k1 = load_matrices(unit.keys + HALF_UNIT);
  const uint4 v0 = load_transposed(unit.values), v1 = load_transposed(unit.values + 2 * MATRIX);
  u32 p[4];
  float s0[4], s1[4];
  logits<MASKED>(s0, s1, q, k0, k1, a.start, keys, lane);
  weigh(p, s0, s1);
  add_values(a.out, a.total[0], p, v0, v1);
}

// A full stage of keys and values in shared memory
template <int UNROLLED>
DEVICE void attend(Attention& a, const u32 (&q)[2][4], const char* kv, int lane) {
  Rows p(kv, lane);
#pragma unroll UNROLLED
  for (int t = 0; t < CHUNK; t++, p.next()) attend_unit<false>(a, q, p, UNIT, lane);
}
// The last stage, of which `keys` are live
DEVICE void attend_rest(Attention& a, const u32 (&q)[2][4], const char* kv, int keys, int lane) {
  Rows p(kv, lane);
#pragma unroll 1
  for (; keys > 0; keys -= UNIT, p.next()) attend_unit<true>(a, q, p, keys, lane);
}

DEVICE void row_totals(float (&sums)[2], const Attention& a) {
#pragma unroll
  for (int r = 0; r < 2; r++) sums[r] = a.total[0][2 * r];
}
DEVICE bool in_range(float total) { return total > LEAST_TOTAL && total < MOST_TOTAL; }

// y = attention + x for the head's 32 columns of 16 rows, as A fragments; `x` is the lane's first uint4 of these columns
DEVICE void add_residual(u32 (&y)[2][4], const float (&out)[4][4], const float (&sums)[2], const uint4* x) {
  const float i0 = reciprocal(sums[0]), i1 = reciprocal(sums[1]);
  u32 f[2][4];
  get(f[0], x);
  get(f[1], x + LANES);
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float* c = out[2 * t + (k >> 1)] + (k & 1) * 2;
      const float inverse = (k & 1) ? i1 : i0;
      y[t][k] = pack(__fmaf_rn(c[0], inverse, low(f[t][k])), __fmaf_rn(c[1], inverse, high(f[t][k])));
    }
}
