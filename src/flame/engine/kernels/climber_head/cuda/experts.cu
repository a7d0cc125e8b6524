// Experts, gates, mixture and towers in one launch. A CTA has the rows of 64 candidates a group of four warps, and some of the
// experts; the CTAs of a cluster have the same rows and all experts, and each mixes them for some of the tasks.
//   INPUTS, HIDDEN, TASKS, SIGMOIDS (a bit a task), HEADER_COUNT (word of a user's header)
// and of a configuration: GROUPS, SPLIT (CTAs of a cluster), SLOTS of each ring.
#include "cluster.cuh"
#include "products.cuh"
#include "slots.cuh"

constexpr int EXPERTS = 8;
constexpr int DIM = 64;
constexpr int CHUNK = 64;  // hidden units of a stage
constexpr int TILES = CHUNK / 8;
constexpr int STEPS = INPUTS / 16;
constexpr int CHUNKS = HIDDEN / CHUNK;
constexpr int OWN = EXPERTS / SPLIT;
constexpr int WARPS = GROUPS * GROUP_WARPS;
constexpr int GROUP_ROWS = 64;
constexpr int ROWS = GROUPS * GROUP_ROWS;
static_assert(CHUNKS % 2 == 0, "two chunks take turns");
static_assert(TASKS <= TILES, "all gates make one stage");

// First products' matrices and biases; second products' and the experts' output biases. After the experts' stages one with the
// gates, 8 columns a task, and for each task the tower: matrix, biases, output weights, output bias.
constexpr int FIRST = 2 * INPUTS * CHUNK;
constexpr int FIRST_BYTES = FIRST + 4 * CHUNK;
constexpr int SECOND = 2 * CHUNK * DIM;
constexpr int SECOND_BYTES = SECOND + 4 * DIM;
constexpr int TOWER_BYTES = SECOND_BYTES + 4 * DIM + 16;
constexpr int STAGE_BYTES = FIRST_BYTES + SECOND_BYTES;
constexpr int TOWERS = EXPERTS * CHUNKS * STAGE_BYTES + FIRST_BYTES;

// A warp's outputs of an expert, in bf16
constexpr int OUTPUTS = DIM / 16 * LANES;  // uint4

using Firsts = Slots<SLOTS, FIRST_BYTES>;
using Seconds = Slots<SLOTS, TOWER_BYTES>;

struct Launch {
  const char* wide;     // [users, rows, INPUTS] bf16
  const char* weights;
  const int* header;    // [users, header_words]
  float* scores;        // [users, candidates, TASKS]
  long long user_bytes;
  int row_bytes, rows, header_words, candidates, tiles;
};

// What a CTA does
struct Place {
  int part, user, start;
  DEVICE Place(const Launch& g) {
    const int tile = blockIdx.x / SPLIT;
    part = blockIdx.x % SPLIT;
    user = tile / g.tiles;
    start = tile % g.tiles * ROWS;
  }
  DEVICE int count(const Launch& g) const { return min(g.header[(long long)user * g.header_words + HEADER_COUNT], g.candidates); }
  DEVICE bool live(const Launch& g) const { return start < count(g); }
};

struct Experts {
  const Launch& g;
  const Place& place;
  Firsts firsts;
  Seconds seconds;
  uint4* outputs;  // the lane's
  int first, lane;  // the warp's first candidate
  float s[2][TILES][4], out[TILES][4];
  u32 x[STEPS][4], p[2][TILES / 2][4];

  // Rows beyond the count hold anything, and nobody reads what is made of them
  DEVICE void load() {
    const char* rows = g.wide + place.user * g.user_bytes;
    const int row = first + (lane >> 2);
    load_rows(x, rows + (long long)min(row, g.rows - 1) * g.row_bytes, rows + (long long)min(row + 8, g.rows - 1) * g.row_bytes, lane);
  }
  DEVICE void keep(int expert) {
    u32 a[TILES / 2][4];
    operands(a, out);
#pragma unroll
    for (int k = 0; k < TILES / 2; k++) outputs[expert * WARPS * OUTPUTS + k * LANES] = make_uint4(a[k][0], a[k][1], a[k][2], a[k][3]);
  }
  DEVICE void issue_hidden(float (&c)[TILES][4]) {
    const char* w = firsts.take();
    start_from(c, w + FIRST, lane);
    issue(c, x, w);
  }
  // The next chunk's hidden units are on their way while those of this one are made operands, and its outputs after them
  template <bool BEGIN>
  DEVICE void two_chunks(int expert) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      issue_hidden(s[i ^ 1]);
      hold(s[i]);
      relu_operands(p[i], s[i]);
      const char* w = seconds.take();
      if (BEGIN && i == 0) {
        // For one group less the compiler does not see that the outputs are there
        wgmma_wait<0>();
        hold(out);
        if (expert > 0) {
          keep(expert - 1);
          seconds.release(lane);
        }
        start_from(out, w + SECOND, lane);
      }
      issue(out, p[i], w);
      wgmma_wait<1>();
      firsts.release(lane);
      if (!BEGIN || i > 0) seconds.release(lane);
    }
  }
  // Leaves the gates' logits in s[0]: they are the stage after the last
  DEVICE void experts() {
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) out[j][i] = 0.f;
    issue_hidden(s[0]);
    wgmma_wait<0>();
    firsts.release(lane);
#pragma unroll 1
    for (int expert = 0; expert < OWN; expert++) {
      two_chunks<true>(expert);
#pragma unroll 1
      for (int c = 2; c < CHUNKS; c += 2) two_chunks<false>(expert);
    }
    wgmma_wait<0>();
    hold(s[0]);
    hold(out);
    seconds.release(lane);
    keep(OWN - 1);
  }
  // Logits to shares: lane 4 g + t has experts 2t and 2t + 1 of rows g and g + 8
  DEVICE void shares() {
#pragma unroll
    for (int task = 0; task < TASKS; task++)
#pragma unroll
      for (int r = 0; r < 4; r += 2) {
        float &a = s[0][task][r], &b = s[0][task][r + 1];
        const float most = quad_max(fmaxf(a, b));
        a = power_of_two(LOG2_E * (a - most));
        b = power_of_two(LOG2_E * (b - most));
        const float scale = reciprocal(quad_sum(a + b));
        a *= scale;
        b *= scale;
      }
  }
  DEVICE uint4 output(int expert, int k) const {
    const uint4* at = outputs + expert % OWN * WARPS * OUTPUTS + k * LANES;
    return SPLIT == 1 ? *at : load_of_cta(at, expert / OWN);
  }
  DEVICE void mix(float (&mixed)[TILES][4], int task) const {
    float share[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      share[i] = s[0][0][i];
#pragma unroll
      for (int other = 1; other < TASKS; other++) share[i] = task == other ? s[0][other][i] : share[i];
    }
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) mixed[j][i] = 0.f;
#pragma unroll
    for (int expert = 0; expert < EXPERTS; expert++) {
      const int owner = (lane & ~3) + expert / 2;
      const float a = __shfl_sync(~0u, share[expert & 1], owner), b = __shfl_sync(~0u, share[2 + (expert & 1)], owner);
#pragma unroll
      for (int k = 0; k < TILES / 2; k++) {
        const uint4 v = output(expert, k);
        add(mixed[2 * k], a, b, v.x, v.y);
        add(mixed[2 * k + 1], a, b, v.z, v.w);
      }
    }
  }
  static DEVICE void add(float (&c)[4], float a, float b, u32 first, u32 second) {
    c[0] = __fmaf_rn(a, low(first), c[0]);
    c[1] = __fmaf_rn(a, high(first), c[1]);
    c[2] = __fmaf_rn(b, low(second), c[2]);
    c[3] = __fmaf_rn(b, high(second), c[3]);
  }
  DEVICE void tower(int task) {
    float mixed[TILES][4];
    mix(mixed, task);
    operands(p[0], mixed);
    const char* w = seconds.take();
    start_from(out, w + SECOND, lane);
    issue(out, p[0], w);
    wgmma_wait<0>();
    hold(out);
    float logits[2] = {};
#pragma unroll
    for (int j = 0; j < TILES; j++) {
      const float2 weight = reinterpret_cast<const float2*>(w + SECOND_BYTES + j * 32)[lane & 3];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        logits[r] = __fmaf_rn(fmaxf(out[j][2 * r], 0.f), weight.x, logits[r]);
        logits[r] = __fmaf_rn(fmaxf(out[j][2 * r + 1], 0.f), weight.y, logits[r]);
      }
    }
    const float bias = *reinterpret_cast<const float*>(w + SECOND_BYTES + 4 * DIM);
    seconds.release(lane);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const float logit = quad_sum(logits[r]) + bias;
      const int candidate = first + (lane >> 2) + 8 * r;
      if (candidate < place.count(g) && (lane & 3) == 0)
        g.scores[((long long)place.user * g.candidates + candidate) * TASKS + task] = SIGMOIDS >> task & 1 ? sigmoid(logit) : logit;
    }
  }
};


// Weights do not wait for the count: without a live row, what has been asked for is waited for, and no more
template <class Ring>
DEVICE bool send_stages(Ring& ring, const char* from, int bytes, const Launch& g, const Place& place) {
  constexpr int STAGES = OWN * CHUNKS;
  const int early = min(STAGES, SLOTS);
#pragma unroll 1
  for (int i = 0; i < early; i++) ring.fill(from + i * STAGE_BYTES, bytes);
  if (!place.live(g)) {
    ring.drain();
    return false;
  }
#pragma unroll 1
  for (int i = early; i < STAGES; i++) ring.fill(from + i * STAGE_BYTES, bytes);
  return true;
}

extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__((GROUPS + 1) * GROUP_WARPS * LANES, 1)
    climber_experts(const __grid_constant__ Launch g) {
  DYNAMIC_SHARED(memory);
  __shared__ __align__(8) u64 barriers[4 * SLOTS];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const Place place(g);
  char* const seconds_at = memory + SLOTS * FIRST_BYTES;
  Firsts firsts(memory, barriers);
  Seconds seconds(seconds_at, barriers + 2 * SLOTS);
  if (threadIdx.x == 0) {
    firsts.init(WARPS);
    seconds.init(WARPS);
    barrier_fence();
  }
  __syncthreads();
  if (warp >= WARPS) {
    if (GROUPS > 1) lower_registers<24>();
    const char* w = g.weights + place.part * OWN * CHUNKS * STAGE_BYTES;
    if (warp == WARPS && lane == 0 && send_stages(firsts, w, FIRST_BYTES, g, place))
      firsts.fill(g.weights + TOWERS - FIRST_BYTES, FIRST_BYTES);
    if (warp == WARPS + 1 && lane == 0 && send_stages(seconds, w + FIRST_BYTES, SECOND_BYTES, g, place))
#pragma unroll 1
      for (int task = place.part; task < TASKS; task += SPLIT) seconds.fill(g.weights + TOWERS + task * TOWER_BYTES, TOWER_BYTES);
    __syncwarp();
    if (SPLIT > 1 && place.live(g)) {
      cluster_arrive();
      cluster_wait();
      cluster_arrive();
      cluster_wait();
    }
  } else {
    if (GROUPS > 1) raise_registers<240>();
    uint4* outputs = reinterpret_cast<uint4*>(seconds_at + SLOTS * TOWER_BYTES) + warp * OUTPUTS + lane;
    Experts mine{g, place, firsts, seconds, outputs, place.start + warp * 16, lane};
    mine.load();
    if (!place.live(g)) return;
    mine.experts();
    if (SPLIT > 1) cluster_arrive();
    mine.shares();
    if (SPLIT > 1) cluster_wait();
#pragma unroll 1
    for (int task = place.part; task < TASKS; task += SPLIT) mine.tower(task);
    __syncwarp();
    // Others may still read what this CTA has
    if (SPLIT > 1) {
      cluster_arrive();
      cluster_wait();
    }
  }
}
