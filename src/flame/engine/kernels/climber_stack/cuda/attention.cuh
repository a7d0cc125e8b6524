// Attention of MT tiles of 16 rows to one head's keys, 16 keys at a time from the first on.
//
// Weights are 2^(s - shift). The shift of a row is the largest of its logits s over the first 16 keys and, for a candidate,
// its own key: fixed by the row and those keys alone, known before the sums start, and the total is at least 1. The total
// leaves the range only where a later logit is 64 above; `repair` redoes such rows with the true maximum.
#pragma once
#include "projection.cuh"

constexpr float MOST_TOTAL = 18446744073709551616.f;  // 2^64: p v stays finite for values below 2^63
#define NOTHING __int_as_float(0xff800000)  // minus infinity

template <int MT>
struct Attention {
  float out[MT][4][4];    // sum of p v; before the shift is known, the own value
  float total[MT][2];     // sum of p of the lane's keys, for the lane's rows: lane / 4 and 8 below
  float own[MT][2];       // p of the own key; before the shift is known, its logit
  float shift[MT][4];     // minus the shift, as an accumulator starts

  DEVICE void init() {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      own[m][0] = own[m][1] = NOTHING;
      total[m][0] = total[m][1] = 0.f;
#pragma unroll
      for (int j = 0; j < 4; j++) out[m][j][0] = out[m][j][1] = out[m][j][2] = out[m][j][3] = 0.f;
    }
  }
};

// Logit of a candidate's own key, rounded as keys in memory are, and its value
template <int MT>
DEVICE void attend_itself(Attention<MT>& a, const u32 (&q)[MT][2][4], const u32 (&x)[MT][STEPS][4], const char* w, int lane) {
  float k[MT][4][4];
  project_keys<MT>(k, x, w, lane);
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
      a.own[m][r] = quad_sum(s);
    }
  }
  project_values<MT>(a.out, x, w, lane);
}

// Logits minus the shift, of 16 keys; those of `keys` on are nothing
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

// The largest logits so far of the lane's two rows, with 16 more keys
DEVICE void raise(float (&top)[2], const u32 (&q)[2][4], uint4 k0, uint4 k1, int keys, int lane) {
  const float zero[4] = {0.f, 0.f, 0.f, 0.f};
  float s0[4], s1[4];
  logits<true>(s0, s1, q, k0, k1, zero, keys, lane);
#pragma unroll
  for (int r = 0; r < 2; r++)
    top[r] = fmaxf(top[r], fmaxf(fmaxf(s0[2 * r], s0[2 * r + 1]), fmaxf(s1[2 * r], s1[2 * r + 1])));
}

// The own key's part under the shift that was chosen
DEVICE void weigh_itself(float (&out)[4][4], float (&own)[2], const float (&shift)[4]) {
  own[0] = exp2(__fadd_rn(own[0], shift[0]));
  own[1] = exp2(__fadd_rn(own[1], shift[2]));
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) out[j][i] = __fmul_rn(out[j][i], own[i >> 1]);
}

// Before the first key: chooses the shift from the first `keys` keys at `kv` (there may be none) and the own key
template <int MT>
DEVICE void choose_shift(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int keys, int lane) {
  const uint4* p = reinterpret_cast<const uint4*>(kv) + lane;
  uint4 k0 = make_uint4(0, 0, 0, 0), k1 = k0;
  if (keys > 0) {
    k0 = p[0];
    k1 = p[32];
  }
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float top[2] = {a.own[m][0], a.own[m][1]};
    raise(top, q[m], k0, k1, keys, lane);
    a.shift[m][0] = a.shift[m][1] = -quad_max(top[0]);
    a.shift[m][2] = a.shift[m][3] = -quad_max(top[1]);
    weigh_itself(a.out[m], a.own[m], a.shift[m]);
  }
}

template <int MT, bool MASKED>
DEVICE void attend_unit(Attention<MT>& a, const u32 (&q)[MT][2][4], uint4 k0, uint4 k1, uint4 v0, uint4 v1, int keys, int lane) {
  u32 p[MT][4];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    float s0[4], s1[4];
    logits<MASKED>(s0, s1, q[m], k0, k1, a.shift[m], keys, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      s0[i] = exp2(s0[i]);
      s1[i] = exp2(s1[i]);
    }
    a.total[m][0] = __fadd_rn(a.total[m][0], __fadd_rn(__fadd_rn(s0[0], s0[1]), __fadd_rn(s1[0], s1[1])));
    a.total[m][1] = __fadd_rn(a.total[m][1], __fadd_rn(__fadd_rn(s0[2], s0[3]), __fadd_rn(s1[2], s1[3])));
    p[m][0] = pack(s0[0], s0[1]);
    p[m][1] = pack(s0[2], s0[3]);
    p[m][2] = pack(s1[0], s1[1]);
    p[m][3] = pack(s1[2], s1[3]);
  }
#pragma unroll
  for (int m = 0; m < MT; m++) {
    mma(a.out[m][0], p[m], v0.x, v0.y);
    mma(a.out[m][1], p[m], v0.z, v0.w);
    mma(a.out[m][2], p[m], v1.x, v1.y);
    mma(a.out[m][3], p[m], v1.z, v1.w);
  }
}

// A stage of keys and values in shared memory, of which `keys` are live
template <int MT, int UNROLLED>
DEVICE void attend(Attention<MT>& a, const u32 (&q)[MT][2][4], const char* kv, int keys, int lane) {
  const uint4* p = reinterpret_cast<const uint4*>(kv) + lane;
  if (keys >= CHUNK * UNIT) {
#pragma unroll UNROLLED
    for (int t = 0; t < CHUNK; t++, p += UNIT_BYTES / 16) attend_unit<MT, false>(a, q, p[0], p[32], p[64], p[96], UNIT, lane);
  } else {
#pragma unroll 1
    for (; keys > 0; keys -= UNIT, p += UNIT_BYTES / 16) attend_unit<MT, true>(a, q, p[0], p[32], p[64], p[96], keys, lane);
  }
}

DEVICE bool in_range(float total) { return total < MOST_TOTAL; }

// Whether a row of the warp's tiles left the range; the same answer in every lane
template <int MT>
DEVICE bool out_of_range(const float (&sums)[MT][2]) {
  bool bad = false;
#pragma unroll
  for (int m = 0; m < MT; m++) bad |= !in_range(sums[m][0]) | !in_range(sums[m][1]);
  return __any_sync(~0u, bad);
}

// Redoes a head where a row's total left the range: such rows under their true maximum, the others as before, to the same
// bits. Weights and keys are read from global memory, as the ring has moved on; `x` are the rows in shared memory.
template <int MT>
DEVICE void repair(Attention<MT>& a, const float (&sums)[MT][2], const u32 (&q)[MT][2][4], const uint4* x, const char* w, const char* kv, int keys, bool candidates, int lane) {
  a.init();
  if (candidates) {
    u32 f[MT][STEPS][4];
    get_strip<MT>(f, x);
    attend_itself<MT>(a, q, f, w, lane);
  }
  float top[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++) {
    top[m][0] = a.own[m][0];
    top[m][1] = a.own[m][1];
  }
  const char* p = kv + lane * 16;
#pragma unroll 1
  for (int left = keys; left > 0; left -= UNIT, p += UNIT_BYTES) {
    const uint4 k0 = load_l2(p), k1 = load_l2(p + 512);
#pragma unroll
    for (int m = 0; m < MT; m++) raise(top[m], q[m], k0, k1, left, lane);
  }
#pragma unroll
  for (int m = 0; m < MT; m++) {
    const float top0 = quad_max(top[m][0]), top1 = quad_max(top[m][1]);
    if (!in_range(sums[m][0])) a.shift[m][0] = a.shift[m][1] = -top0;
    if (!in_range(sums[m][1])) a.shift[m][2] = a.shift[m][3] = -top1;
    weigh_itself(a.out[m], a.own[m], a.shift[m]);
  }
  p = kv + lane * 16;
#pragma unroll 1
  for (int left = keys; left > 0; left -= UNIT, p += UNIT_BYTES)
    attend_unit<MT, true>(a, q, load_l2(p), load_l2(p + 512), load_l2(p + 1024), load_l2(p + 1536), left, lane);
}

template <int MT>
DEVICE void row_totals(float (&sums)[MT][2], const Attention<MT>& a) {
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) sums[m][r] = __fadd_rn(quad_sum(a.total[m][r]), a.own[m][r]);
}

// y = attention + x for the head's 32 columns of 16 rows, as A fragments
DEVICE void add_residual(u32 (&y)[2][4], const float (&out)[4][4], const float (&sums)[2], const u32 (&x0)[4], const u32 (&x1)[4]) {
  const float i0 = __frcp_rn(sums[0]), i1 = __frcp_rn(sums[1]);
#pragma unroll
  for (int t = 0; t < 2; t++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const u32 x = t ? x1[k] : x0[k];
      const float* c = out[2 * t + (k >> 1)] + (k & 1) * 2;
      const float inverse = (k & 1) ? i1 : i0;
      y[t][k] = pack(__fmaf_rn(c[0], inverse, low(x)), __fmaf_rn(c[1], inverse, high(x)));
    }
}
