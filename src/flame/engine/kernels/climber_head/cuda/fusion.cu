// Gated fusion: what two blocks say of a candidate, made one vector, in one launch. A warp has 8 candidates, with block 0 in
// rows g and block 1 in rows g + 8 of its 16: what passes between blocks stays in a thread.
//   HEADS (of 32 columns), FFN, SQUEEZED, SCENARIOS, RESIDUAL_FIRST, HEADER_SCENARIO, HEADER_COUNT (words of a user's header)
// and of a configuration: GROUPS of four warps, SLOTS of the ring.
#include "fusion_stages.cuh"

struct Fusion {
  const Launch& g;
  const Place& place;
  Ring ring;
  float4* middle;  // the lane's: the layer's attention, in fp32
  int candidate, lane, count;
  u32 x[STEPS][4], between[STEPS][4];
  float scale;

  // Rows beyond the count hold anything, and nobody reads what is made of them
  DEVICE void load() {
    const char* row = g.x + place.user * g.user_bytes + (long long)(g.first_row + min(candidate, g.candidates - 1)) * g.row_bytes;
    load_rows(x, row, row + g.block_bytes, lane);
    scale = g.scales[min(max(place.word(g, HEADER_SCENARIO), 0), SCENARIOS - 1)];
  }

  DEVICE void issue_head(float (&a)[12][4]) {
    const char* w = ring.take();
    start_from(a, w + HEAD, lane);
    issue(a, x, w);
  }
  // Of queries, keys and values (4 tiles each), with the other block's and the own
  DEVICE void attend(const float (&a)[12][4], int head) {
    float own[2] = {}, cross[2] = {}, share[2];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int b = 0; b < 2; b++) {
          own[b] = __fmaf_rn(a[j][2 * b + i], a[4 + j][2 * b + i], own[b]);
          cross[b] = __fmaf_rn(a[j][2 * b + i], a[4 + j][2 - 2 * b + i], cross[b]);
        }
#pragma unroll
    for (int b = 0; b < 2; b++) share[b] = sigmoid_of_two(scale * quad_sum(own[b]), scale * quad_sum(cross[b]));
    float attended[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int b = i / 2, other = i ^ 2;
        const float v = __fmaf_rn(share[b], a[8 + j][i] - a[8 + j][other], a[8 + j][other]);
        const u32 before = x[2 * head + j / 2][2 * (j & 1) + b];
        attended[j][i] = RESIDUAL_FIRST ? v + (i & 1 ? high(before) : low(before)) : v;
      }
    keep(attended, head);
  }
  DEVICE void keep(const float (&attended)[4][4], int head) {
    u32 a[2][4];
    operands(a, attended);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (RESIDUAL_FIRST) middle[(4 * head + j) * LANES] = make_float4(attended[j][0], attended[j][1], attended[j][2], attended[j][3]);
#pragma unroll
      for (int i = 0; i < 4; i++) between[2 * head + j / 2][i] = a[j / 2][i];
    }
  }
  // The own block's share, of logits times log2(e)
  static DEVICE float sigmoid_of_two(float own, float other) {
    const float most = fmaxf(own, other);
    own = power_of_two(own - most);
    return own * reciprocal(own + power_of_two(other - most));
  }
  DEVICE void attention() {
    float a[2][12][4];
    issue_head(a[0]);
#pragma unroll
    for (int head = 0; head < HEADS; head++) {
      if (head + 1 < HEADS) {
        issue_head(a[(head + 1) & 1]);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      hold(a[head & 1]);
      ring.release(lane);
      attend(a[head & 1], head);
    }
  }

  DEVICE const char* issue_hidden(float (&c)[CHUNK / 8][4]) {
    const char* w = ring.take();
    start_from(c, w + 2 * FIRST, lane);
    issue(c, between, w);
    return w;
  }
  // The next chunk's hidden units are on their way while those of this one are made operands, and its outputs after them
  DEVICE void feed_forward(float (&out)[TILES][4]) {
    float s[2][CHUNK / 8][4];
    u32 p[2][CHUNK / 16][4];
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) out[j][i] = 0.f;
    hold(out);
    const char* w = issue_hidden(s[0]);
    wgmma_wait<0>();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      const char* next = c + 1 < CHUNKS ? issue_hidden(s[(c + 1) & 1]) : w;
      hold(s[c & 1]);
      relu_operands(p[c & 1], s[c & 1]);
      issue(out, p[c & 1], w + FIRST);
      if (c + 1 < CHUNKS)
        wgmma_wait<1>();
      else
        wgmma_wait<0>();
      if (c > 0) ring.release(lane);
      w = next;
    }
    hold(out);
    ring.release(lane);
  }

  // LayerNorm with residuals; `w` has the bias of what comes, weight and bias of the norm
  DEVICE void norm(float (&c)[TILES][4], const char* w) const {
    float sums[2] = {}, squares[2] = {}, mean[2], root[2];
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const float2 bias = reinterpret_cast<const float2*>(w + j * 32)[lane & 3];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        c[j][i] += i & 1 ? bias.y : bias.x;
        const u32 before = x[j / 2][2 * (j & 1) + i / 2];
        if (!RESIDUAL_FIRST) c[j][i] += i & 1 ? high(before) : low(before);
        sums[i / 2] += c[j][i];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) mean[r] = quad_sum(sums[r]) * (1.f / DIM);
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        c[j][i] -= mean[i / 2];
        squares[i / 2] = __fmaf_rn(c[j][i], c[j][i], squares[i / 2]);
      }
#pragma unroll
    for (int r = 0; r < 2; r++) root[r] = reciprocal_root(quad_sum(squares[r]) * (1.f / DIM) + EPS);
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const float2 gain = reinterpret_cast<const float2*>(w + 4 * DIM + j * 32)[lane & 3];
      const float2 shift = reinterpret_cast<const float2*>(w + 8 * DIM + j * 32)[lane & 3];
      const float4 rest = RESIDUAL_FIRST ? middle[j * LANES] : make_float4(0.f, 0.f, 0.f, 0.f);
      c[j][0] = __fmaf_rn(c[j][0] * root[0], gain.x, shift.x) + rest.x;
      c[j][1] = __fmaf_rn(c[j][1] * root[0], gain.y, shift.y) + rest.y;
      c[j][2] = __fmaf_rn(c[j][2] * root[1], gain.x, shift.x) + rest.z;
      c[j][3] = __fmaf_rn(c[j][3] * root[1], gain.y, shift.y) + rest.w;
    }
  }

  // The gate's hidden units, of both blocks together: both rows of a candidate get the same
  DEVICE void squeeze(u32 (&squeezed)[SQUEEZED / 16][4], const float (&c)[TILES][4], const char* w) {
    float z[SQUEEZED / 8][4];
    u32 rows[STEPS][4], both[BLOCKS * STEPS][4];
    operands(rows, c);
#pragma unroll
    for (int k = 0; k < BLOCKS * STEPS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) both[k][i] = rows[k % STEPS][(i & 2) + k / STEPS];
    start_from(z, w + SQUEEZE, lane);
    issue(z, both, w);
    wgmma_wait<0>();
    hold(z);
    relu_operands(squeezed, z);
  }
  DEVICE void excite(float (&gates)[TILES][4], const u32 (&squeezed)[SQUEEZED / 16][4]) {
    const char* w = ring.take();
#pragma unroll
    for (int j = 0; j < TILES; j++) {
#pragma unroll
      for (int b = 0; b < 2; b++) {
        const float2 bias = reinterpret_cast<const float2*>(w + EXCITE + b * 4 * DIM + j * 32)[lane & 3];
        gates[j][2 * b] = bias.x;
        gates[j][2 * b + 1] = bias.y;
      }
    }
    hold(gates);
    constexpr int UNITS = SQUEEZED / 16;
    u32 own[BLOCKS * UNITS][4];
#pragma unroll
    for (int k = 0; k < BLOCKS * UNITS; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) own[k][i] = (i & 1) == k / UNITS ? squeezed[k % UNITS][i] : 0;
    issue(gates, own, w);
    wgmma_wait<0>();
    hold(gates);
    ring.release(lane);
  }
  // A sigmoid by one instruction of the unit that makes exponentials, within 2.4e-4
  static DEVICE float gate(float v) { return __fmaf_rn(rough_tanh(0.5f * v), 0.5f, 0.5f); }
  DEVICE void store(const float (&c)[TILES][4], const float (&gates)[TILES][4]) const {
    if (candidate >= count) return;
    char* row = g.wide + ((long long)place.user * g.candidates + candidate) * (2 * BLOCKS * DIM);
    uint4* to = reinterpret_cast<uint4*>(row) + (lane & 3);
#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
      for (int j = 0; j < TILES; j += 4) {
        u32 v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          v[i] = pack(c[j + i][2 * b] * gate(gates[j + i][2 * b]), c[j + i][2 * b + 1] * gate(gates[j + i][2 * b + 1]));
        to[b * DIM / 8 + j] = make_uint4(v[0], v[1], v[2], v[3]);
      }
  }
  DEVICE void run() {
    attention();
    float c[TILES][4], gates[TILES][4];
    u32 squeezed[SQUEEZED / 16][4];
    feed_forward(c);
    const char* w = ring.take();
    norm(c, w + NORM);
    squeeze(squeezed, c, w);
    ring.release(lane);
    excite(gates, squeezed);
    store(c, gates);
  }
};

extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP_WARPS * LANES, 1) climber_fusion(const __grid_constant__ Launch g) {
  DYNAMIC_SHARED(memory);
  __shared__ __align__(8) u64 barriers[2 * SLOTS];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const Place place(g);
  Ring ring(memory, barriers);
  if (threadIdx.x == 0) {
    ring.init(WARPS);
    barrier_fence();
  }
  __syncthreads();
  if (warp >= WARPS) {
    if (GROUPS > 1) lower_registers<24>();
    if (warp == WARPS && lane == 0) send_stages(ring, g, place);
    wait_for_kernel_before();
  } else {
    if (GROUPS > 1) raise_registers<240>();
    float4* middle = reinterpret_cast<float4*>(memory + SLOTS * SLOT) + warp * TILES * LANES + lane;
    wait_for_kernel_before();
    launch_dependents();  // who has a multiprocessor for itself fills its ring with weights
    Fusion mine{g, place, ring, middle, place.start + warp * 8 + (lane >> 2), lane, place.count(g)};
    mine.load();
    if (place.start < mine.count) mine.run();
  }
}
