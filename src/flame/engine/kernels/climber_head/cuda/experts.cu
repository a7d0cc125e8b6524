// Experts, and where a CTA has all of them gates, mixture and towers too. A group of four warps has the rows of 64 candidates.
//   as mixture.cuh says, and GROUPS, SLOTS of each ring.
#include "mixture.cuh"
#include "slots.cuh"

constexpr int WARPS = GROUPS * GROUP_WARPS;
constexpr int ROWS = WARPS * UNIT;
constexpr bool ALL = SPLIT == 1;

using Firsts = Slots<SLOTS, FIRST_BYTES, 2>;
using Seconds = Slots<SLOTS, TOWER_BYTES, 2>;

// What a CTA does
struct Place {
  int part, user, start;
  DEVICE Place(const Launch& g) {
    const int tile = blockIdx.x / SPLIT;
    part = blockIdx.x % SPLIT;
    user = tile / g.tiles;
    start = tile % g.tiles * ROWS;
  }
  DEVICE bool live(const Launch& g) const { return start < count_of(g, user); }
};

struct Experts {
  const Launch& g;
  const Place& place;
  Firsts firsts;
  Seconds seconds;
  uint4* outputs;   // the lane's, of the CTA's first expert or part; in shared memory where a CTA has all
  int first, lane;  // the warp's first candidate
  float s[2][TILES][4], out[TILES][4], total[TILES][4];
  u32 x[STEPS][4], p[2][TILES / 2][4];

  // Hidden units of the next chunk: biases, then what their products add
  DEVICE const char* begin_hidden(float (&c)[TILES][4]) {
    const char* w = firsts.take();
    start_from(c, w + FIRST, lane);
    return w;
  }
  // The sum of pair `pair` is there
  DEVICE void add_pair(int pair) {
    u32 a[TILES / 2][4];
    operands(a, out);
    if (PARTS > 1) {
      put_outputs(outputs + pair * OUTPUTS, a);
      return;
    }
    add_outputs(total, a);
    if (pair % PAIRS < PAIRS - 1) return;
    operands(a, total);
    put_outputs(outputs + pair / PAIRS * (ALL ? WARPS : 1) * OUTPUTS, a);
    clear(total);
  }
  static DEVICE void clear(float (&c)[TILES][4]) {
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) c[j][i] = 0.f;
  }
  // Before: the first chunk's hidden units are there, and `w` has the second's weights, whose biases are in s[1]. After: the
  // same of the next pair. Products follow each other while operands, sums and biases are made ready beside them.
  // LAST: there is no next pair, and no gates after it.
  template <bool LAST>
  DEVICE void two_chunks(int pair, const char*& w) {
    issue(s[1], x, w);
    relu_operands(p[0], s[0]);
    const char* next = LAST ? w : begin_hidden(s[0]);
    const char* second = seconds.take();
    start_from(out, second + SECOND, lane);
    issue(out, p[0], second);
    wgmma_wait<1>();
    firsts.release(lane);
    hold(s[1]);
    relu_operands(p[1], s[1]);
    issue(out, p[1], seconds.take());
    if (LAST) {
      wgmma_wait<0>();
    } else {
      issue(s[0], x, next);
      if (pair + 1 < OWN) w = begin_hidden(s[1]);
      wgmma_wait<1>();
    }
    hold(out);
    seconds.release(lane);
    seconds.release(lane);
    add_pair(pair);
    if (LAST) return;
    wgmma_wait<0>();
    firsts.release(lane);
    hold(s[0]);
  }
  // Where a CTA has all experts, leaves the gates' logits in s[0]: they are the stage after the last
  DEVICE void experts() {
    clear(total);
    issue(s[0], x, begin_hidden(s[0]));
    const char* w = begin_hidden(s[1]);
    wgmma_wait<0>();
    firsts.release(lane);
    hold(s[0]);
#pragma unroll 1
    for (int pair = 0; pair < OWN - !ALL; pair++) two_chunks<false>(pair, w);
    if (!ALL) two_chunks<true>(OWN - 1, w);
  }
  // `vectors` are a tower's output weights and bias
  DEVICE void score(const char* vectors, int task) const {
    float halves[2][2];
    for (int half = 0; half < 2; half++) {
      float2 weights[TILES / 2];
      get_weights(weights, vectors + half * 2 * DIM, lane);
      add_logits(halves[half], out + half * TILES / 2, weights);
    }
    const float bias = *reinterpret_cast<const float*>(vectors + 4 * DIM);
    if ((lane & 3) != 0) return;
    for (int r = 0; r < 2; r++) {
      const float logit = __fadd_rn(__fadd_rn(halves[0][r], halves[1][r]), bias);
      put_score(logit, g, place.user, first + (lane >> 2) + 8 * r, count_of(g, place.user), task);
    }
  }
  DEVICE void towers() {
#pragma unroll 1
    for (int task = 0; task < TASKS; task++) {
      float share[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        share[i] = s[0][0][i];
#pragma unroll
        for (int other = 1; other < TASKS; other++) share[i] = task == other ? s[0][other][i] : share[i];
      }
      make_shares(share);
      mix(p[0], share, outputs, WARPS * OUTPUTS, lane);
      const char* w = seconds.take();
      start_from(out, w + SECOND, lane);
      issue(out, p[0], w);
      wgmma_wait<0>();
      hold(out);
      score(w + SECOND_BYTES, task);
      seconds.release(lane);
    }
  }
};

// Weights do not wait for the count: without a live row, what has been asked for is waited for, and no more
template <class Ring>
DEVICE bool send_stages(Ring& ring, const char* from, int bytes, const Launch& g, const Place& place) {
  constexpr int STAGES = 2 * OWN;
  const int early = min(STAGES, SLOTS);
#pragma unroll 1
  for (int i = 0; i < early; i++) ring.fill(from + i * STAGE_BYTES, bytes);
  if (!place.live(g)) {
    ring.drain();
    return false;
  }
#pragma unroll 1
  for (int i = early; i < STAGES; i++) ring.fill(from + i * STAGE_BYTES, bytes);
  return ALL;
}

extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP_WARPS * LANES, 1) climber_experts(const __grid_constant__ Launch g) {
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
    const char* w = g.weights + place.part * 2 * OWN * STAGE_BYTES;
    if (warp == WARPS && lane == 0 && send_stages(firsts, w, FIRST_BYTES, g, place)) firsts.fill(g.weights + GATES, FIRST_BYTES);
    if (warp == WARPS + 1 && lane == 0 && send_stages(seconds, w + FIRST_BYTES, SECOND_BYTES, g, place))
#pragma unroll 1
      for (int task = 0; task < TASKS; task++) seconds.fill(g.weights + TOWERS + task * TOWER_BYTES, TOWER_BYTES);
    wait_for_kernel_before();
  } else {
    if (GROUPS > 1) raise_registers<240>();
    const int first = place.start + warp * UNIT;
    const long long unit = (long long)place.user * g.units + first / UNIT;
    uint4* outputs = ALL ? reinterpret_cast<uint4*>(seconds_at + SLOTS * TOWER_BYTES) + warp * OUTPUTS
                         : g.outputs + (unit * EXPERTS * PAIRS + place.part * OWN) / (PAIRS / PARTS) * OUTPUTS;
    Experts mine{g, place, firsts, seconds, outputs + lane, first, lane};
    wait_for_kernel_before();
    if (!ALL) launch_dependents();
    load_inputs(mine.x, g, place.user, first, lane);
    if (!place.live(g)) return;
    mine.experts();
    if (ALL) mine.towers();
  }
}
