// Attention of MT tiles of 16 rows to one head's keys, 16 keys at a time from the first on.
//
// Weights are 2^(s - shift). The shift of a row is its logit with one key that is at hand before the others': a candidate's
// own, or for an event that of the first of its 16 rows. It takes away what a row's logits have in common, which without a
// maximum could leave fp32's range. Totals that leave it nevertheless are seen, and `redo` takes such rows under their true
// maximum. What a row gets depends on its own history, or on the candidate and the history, alone.
#pragma once
#include "projection.cuh"

// 2^-100 .. 2^100: nothing overflows (values below 2^27), and what becomes zero is below 2^-26 of the total
constexpr float LEAST_TOTAL = 7.888609052210118e-31f;
constexpr float MOST_TOTAL = 1.2676506002282294e30f;
#define NOTHING __int_as_float(0xff800000)  // minus infinity

template <int MT>
struct Attention {
  float out[MT][4][4];    // sum of p v; a candidate's starts with its own value, whose weight is 1
  float total[MT][2];     // sum of p of the lane's keys, for the lane's rows: lane / 4 and 8 below
  float start[MT][4];     // minus the shift, as an accumulator of logits starts

  DEVICE void init() {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      total[m][0] = total[m][1] = 0.f;
#pragma unroll
      for (int j = 0; j < 4; j++) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0.f;
    }
  }
  DEVICE void shift(const float (&logits)[MT][2]) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      start[m][0] = start[m][1] = -logits[m][0];
      start[m][2] = start[m][3] = -logits[m][1];
    }
  }
};

// A candidate's own key and value; the key is rounded as keys in memory are
template <int MT>
DEVICE void attend_itself(Attention<MT>& a, const u32 (&q)[MT][2][4], const u32 (&x)[MT][STEPS][4], const char* w, int lane) {
  float k[MT][4][4];
  project_keys<MT>(k, x, w, lane);
  float own[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    u32 f[2][4];
    to_fragments(f, k[m]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float s = 0.f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const u32 qq = q[m][j >> 1][(j & 1) * 2 + r], kk = f[j >> 1][(j & 1) * 2 + r];
        s = __fmaf_rn(low(qq), low(kk), s);
        s = __fmaf_rn(high(qq), high(kk), s);
      }
      own[m][r] = quad_sum(s);
    }
  }
  a.shift(own);
  project_values<MT>(a.out, x, w, lane);
}

// An event's logit with the first key of its 16 rows. `keys` points at the keys of the head of these rows; they were stored
// by this CTA, so they are there.
DEVICE uint4 first_key(const char* keys, int lane) { return load_l2(keys + (lane & 3) * 16); }
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

// Logits become weights: their sums, and themselves as an A fragment
DEVICE void weigh(float (&total)[2], u32 (&p)[4], float (&s0)[4], float (&s1)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    s0[i] = power_of_two(s0[i]);
    s1[i] = power_of_two(s1[i]);
  }
  total[0] = __fadd_rn(total[0], __fadd_rn(__fadd_rn(s0[0], s0[1]), __fadd_rn(s1[0], s1[1])));
  total[1] = __fadd_rn(total[1], __fadd_rn(__fadd_rn(s0[2], s0[3]), __fadd_rn(s1[2], s1[3])));
  p[0] = pack(s0[0], s0[1]);
  p[1] = pack(s0[2], s0[3]);
  p[2] = pack(s1[0], s1[1]);
  p[3] = pack(s1[2], s1[3]);
}
DEVICE void add_values(float (&out)[4][4], const u32 (&p)[4], uint4 v0, uint4 v1) {
  mma(out[0], p, v0.x, v0.y);
  mma(out[1], p, v0.z, v0.w);
  mma(out[2], p, v1.x, v1.y);
  mma(out[3], p, v1.z, v1.w);
}

template <int MT, bool MASKED>
DEVICE void attend_unit(Attention<MT>& a, const u32 (&q)[MT][2][4], const uint4* unit, int keys, int lane) {
  const uint4 k0 = unit[0], k1 = unit[32], v0 = unit[64], v1 = unit[96];
  u32 p[MT][4];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float s0[4], s1[4];
    logits<MASKED>(s0, s1, q[m], k0, k1, a.start[m], keys, lane);
    weigh(a.total[m], p[m], s0, s1);
  }
#pragma unroll
  for (int m = 0; m < MT; m++) add_values(a.out[m], p[m], v0, v1);
}

// A full stage of keys and values in shared memory
template <int MT, int UNROLLED>
DEVICE void attend(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int lane) {
  const uint4* p = reinterpret_cast<const uint4*>(kv) + lane;
#pragma unroll UNROLLED
  for (int t = 0; t < CHUNK; t++, p += UNIT_BYTES / 16) attend_unit<MT, false>(a, q, p, UNIT, lane);
}
// The last stage, of which `keys` are live
template <int MT>
DEVICE void attend_rest(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int keys, int lane) {
  const uint4* p = reinterpret_cast<const uint4*>(kv) + lane;
#pragma unroll 1
  for (; keys > 0; keys -= UNIT, p += UNIT_BYTES / 16) attend_unit<MT, true>(a, q, p, keys, lane);
}

// Over all keys, with the weight of the own
template <int MT>
DEVICE void row_totals(float (&sums)[MT][2], const Attention<MT>& a, float own) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) sums[m][r] = __fadd_rn(quad_sum(a.total[m][r]), own);
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

struct Unit {
  uint4 k0, k1, v0, v1;
  DEVICE void load(const char* p) {
    k0 = load_l2(p);
    k1 = load_l2(p + 512);
    v0 = load_l2(p + 1024);
    v1 = load_l2(p + 1536);
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
  u32 q[1][2][4];
  Attention<1> a;
  a.init();
  {
    u32 x[1][STEPS][4];
    get_strip<1>(x, rows.x);
    make_queries<1>(q, x, rows.weights, rows.scale, lane);
    if (rows.candidates) attend_itself<1>(a, q, x, rows.weights + QUERY_BYTES, lane);
  }
  if (!rows.candidates) {
    float shift[1][2];
    logit_of_key(shift[0], q[0], first_key(rows.keys + rows.unit * UNIT_BYTES, lane));
    a.shift(shift);
  }
  // After the shift, a candidate's logit with itself is 0
  float top[2] = {rows.candidates ? 0.f : NOTHING, rows.candidates ? 0.f : NOTHING};
  Unit unit, after, far;
  const char* p = rows.keys + lane * 16;
  if (rows.length > 0) unit.load(p);
  if (rows.length > UNIT) after.load(p + UNIT_BYTES);
#pragma unroll 1
  for (int left = rows.length; left > 0; left -= UNIT, p += UNIT_BYTES) {
    if (left > 2 * UNIT) far.load(p + 2 * UNIT_BYTES);
    float s0[4], s1[4], factor[2];
    u32 weights[4];
    logits<true>(s0, s1, q[0], unit.k0, unit.k1, a.start[0], left, lane);
    lower(top[0], factor[0], s0[0], s0[1], s1[0], s1[1], good0);
    lower(top[1], factor[1], s0[2], s0[3], s1[2], s1[3], good1);
#pragma unroll
    for (int r = 0; r < 2; r++) a.total[0][r] = __fmul_rn(a.total[0][r], factor[r]);
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) a.out[0][j][i] = __fmul_rn(a.out[0][j][i], factor[i >> 1]);
    weigh(a.total[0], weights, s0, s1);
    add_values(a.out[0], weights, unit.v0, unit.v1);
    unit = after;
    after = far;
  }
  float sums[2];
  sums[0] = __fadd_rn(quad_sum(a.total[0][0]), rows.candidates ? (good0 ? 1.f : power_of_two(-top[0])) : 0.f);
  sums[1] = __fadd_rn(quad_sum(a.total[0][1]), rows.candidates ? (good1 ? 1.f : power_of_two(-top[1])) : 0.f);
  add_residual(y, a.out[0], sums, rows.x + 2 * rows.head * LANES);
}
