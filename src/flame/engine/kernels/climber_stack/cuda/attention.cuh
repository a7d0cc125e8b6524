// Attention of MT tiles of 16 rows to one head's keys, 16 keys at a time from the first on.
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

template <int MT>
struct Attention {
  float out[MT][4][4];    // sum of p v; a candidate's starts with its own
  float total[MT][4];     // sum of p, as an accumulator: its columns are the same
  float start[MT][4];     // minus the shift, as an accumulator of logits starts

  DEVICE void init() {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      total[m][0] = total[m][1] = total[m][2] = total[m][3] = 0.f;
#pragma unroll
      for (int j = 0; j < 4; j++) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0.f;
    }
  }
  DEVICE void shift(const float (&logits)[MT][2]) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      start[m][0] = start[m][1] = fabsf(logits[m][0]) > NEAR ? -logits[m][0] : 0.f;
      start[m][2] = start[m][3] = fabsf(logits[m][1]) > NEAR ? -logits[m][1] : 0.f;
    }
  }
  // `out` is the rows' own values, which get these weights
  DEVICE void start_with_own(const float (&weights)[MT][2]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        total[m][i] = weights[m][i >> 1];
#pragma unroll
        for (int j = 0; j < 4; j++) out[m][j][i] = __fmul_rn(out[m][j][i], weights[m][i >> 1]);
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
template <int MT, bool SHARED = true>
DEVICE void own_keys_and_values(Attention<MT>& a, float (&own)[MT][2], const u32 (&q)[MT][2][4], const u32 (&x)[MT][STEPS][4],
                                const char* w, int lane) {
  float k[MT][4][4];
  project_keys<MT, SHARED>(k, x, w, lane);
#pragma unroll
  for (int m = 0; m < MT; m++) logit_of_itself(own[m], q[m], k[m]);
  a.shift(own);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) own[m][r] = __fadd_rn(own[m][r], a.start[m][2 * r]);
  project_values<MT, SHARED>(a.out, x, w, lane);
}
template <int MT>
DEVICE void attend_itself(Attention<MT>& a, const u32 (&q)[MT][2][4], const u32 (&x)[MT][STEPS][4], const char* w, int lane) {
  float own[MT][2];
  own_keys_and_values<MT>(a, own, q, x, w, lane);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) own[m][r] = power_of_two(own[m][r]);
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

template <int MT, bool MASKED>
DEVICE void attend_unit(Attention<MT>& a, const u32 (&q)[MT][2][4], const Rows& unit, int keys, int lane) {
  const uint4 k0 = load_matrices(unit.keys), k1 = load_matrices(unit.keys + HALF_UNIT);
  const uint4 v0 = load_transposed(unit.values), v1 = load_transposed(unit.values + 2 * MATRIX);
  u32 p[MT][4];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float s0[4], s1[4];
    logits<MASKED>(s0, s1, q[m], k0, k1, a.start[m], keys, lane);
    weigh(p[m], s0, s1);
  }
#pragma unroll
  for (int m = 0; m < MT; m++) add_values(a.out[m], a.total[m], p[m], v0, v1);
}

// A full stage of keys and values in shared memory
template <int MT, int UNROLLED>
DEVICE void attend(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int lane) {
  Rows p(kv, lane);
#pragma unroll UNROLLED
  for (int t = 0; t < CHUNK; t++, p.next()) attend_unit<MT, false>(a, q, p, UNIT, lane);
}
// The last stage, of which `keys` are live
template <int MT>
DEVICE void attend_rest(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int keys, int lane) {
  Rows p(kv, lane);
#pragma unroll 1
  for (; keys > 0; keys -= UNIT, p.next()) attend_unit<MT, true>(a, q, p, keys, lane);
}

template <int MT>
DEVICE void row_totals(float (&sums)[MT][2], const Attention<MT>& a) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) sums[m][r] = a.total[m][2 * r];
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
