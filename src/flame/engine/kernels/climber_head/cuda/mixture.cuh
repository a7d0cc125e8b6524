// Sizes of experts, gates and towers, their weights in memory, and what is done with the rows of a warp once the experts'
// outputs are there.
//   INPUTS, HIDDEN, TASKS, SIGMOIDS (a bit a task), HEADER_COUNT (word of a user's header), SPLIT (CTAs that share the experts)
#pragma once
#include "products.cuh"

constexpr int EXPERTS = 8;
constexpr int DIM = 64;
constexpr int CHUNK = 64;  // hidden units of a stage
constexpr int TILES = CHUNK / 8;
constexpr int STEPS = INPUTS / 16;
constexpr int UNIT = 16;  // rows of a warp

// Two chunks make a sum, which is rounded to bf16; the sums of an expert are added, and what they make is rounded again
constexpr int PAIRS = HIDDEN / (2 * CHUNK);
constexpr int OWN = EXPERTS * PAIRS / SPLIT;           // pairs of a CTA
constexpr int PARTS = OWN >= PAIRS ? 1 : PAIRS;        // of an expert's outputs, where CTAs leave them to the towers
static_assert(EXPERTS * PAIRS % SPLIT == 0 && (PARTS > 1 || OWN % PAIRS == 0), "CTAs have as much as each other");

// Stages: first products' matrices and biases, second products' and what their sums start from. After the experts' stages one
// with the gates, 8 columns a task, and for each task the tower: matrix, biases, output weights, output bias.
constexpr int FIRST = 2 * INPUTS * CHUNK;
constexpr int FIRST_BYTES = FIRST + 4 * CHUNK;
constexpr int SECOND = 2 * CHUNK * DIM;
constexpr int SECOND_BYTES = SECOND + 4 * DIM;
constexpr int TOWER_BYTES = SECOND_BYTES + 4 * DIM + 16;
constexpr int STAGE_BYTES = FIRST_BYTES + SECOND_BYTES;
constexpr int GATES = 2 * EXPERTS * PAIRS * STAGE_BYTES;
constexpr int TOWERS = GATES + FIRST_BYTES;

// Outputs of 16 rows, in bf16
constexpr int OUTPUTS = DIM / 16 * LANES;  // uint4

struct Launch {
  const char* wide;     // [users, rows, INPUTS] bf16, columns in the order of lanes
  const char* weights;
  const int* header;    // [users, header_words]
  float* scores;        // [users, candidates, TASKS]
  uint4* outputs;       // [users, units, EXPERTS, PARTS, OUTPUTS], where CTAs share the experts
  long long user_bytes;
  int row_bytes, rows, header_words, candidates, tiles, units;
};

DEVICE int count_of(const Launch& g, int user) {
  return min(g.header[(long long)user * g.header_words + HEADER_COUNT], g.candidates);
}
// Rows `first` + g and `first` + g + 8. Those beyond the count hold anything, and nobody reads what is made of them
DEVICE void load_inputs(u32 (&x)[STEPS][4], const Launch& g, int user, int first, int lane) {
  const char* rows = g.wide + user * g.user_bytes;
  const int row = first + (lane >> 2);
  load_lanes(x, rows + (long long)min(row, g.rows - 1) * g.row_bytes, rows + (long long)min(row + 8, g.rows - 1) * g.row_bytes, lane);
}

DEVICE void add_outputs(float (&c)[TILES][4], const u32 (&a)[TILES / 2][4]) {
#pragma unroll
  for (int j = 0; j < TILES; j++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const u32 v = a[j / 2][2 * (j & 1) + r];
      c[j][2 * r] = __fadd_rn(c[j][2 * r], low(v));
      c[j][2 * r + 1] = __fadd_rn(c[j][2 * r + 1], high(v));
    }
}
DEVICE void put_outputs(uint4* to, const u32 (&a)[TILES / 2][4]) {
#pragma unroll
  for (int k = 0; k < TILES / 2; k++) to[k * LANES] = make_uint4(a[k][0], a[k][1], a[k][2], a[k][3]);
}
template <int COUNT>
DEVICE void get_outputs(u32 (&a)[COUNT][4], const uint4* from) {
#pragma unroll
  for (int k = 0; k < COUNT; k++) {
    const uint4 v = from[k * LANES];
    a[k][0] = v.x;
    a[k][1] = v.y;
    a[k][2] = v.z;
    a[k][3] = v.w;
  }
}

// A task's logits to shares: lane 4 g + t has experts 2t and 2t + 1 of rows g and g + 8
DEVICE void make_shares(float (&c)[4]) {
#pragma unroll
  for (int r = 0; r < 4; r += 2) {
    const float most = quad_max(fmaxf(c[r], c[r + 1]));
    c[r] = power_of_two(LOG2_E * (c[r] - most));
    c[r + 1] = power_of_two(LOG2_E * (c[r + 1] - most));
    const float scale = reciprocal(quad_sum(__fadd_rn(c[r], c[r + 1])));
    c[r] = __fmul_rn(c[r], scale);
    c[r + 1] = __fmul_rn(c[r + 1], scale);
  }
}
// Columns of some experts' outputs by a task's shares, as operands: COUNT steps of the next sum. Of an expert the outputs lie
// `stride` further.
template <int COUNT>
DEVICE void mix(u32 (&a)[COUNT][4], const float (&share)[4], const uint4* outputs, int stride, int lane) {
  float c[2 * COUNT][4] = {};
#pragma unroll
  for (int expert = 0; expert < EXPERTS; expert++) {
    const int owner = (lane & ~3) + expert / 2;
    const float first = __shfl_sync(~0u, share[expert & 1], owner), second = __shfl_sync(~0u, share[2 + (expert & 1)], owner);
    u32 v[COUNT][4];
    get_outputs(v, outputs + expert * stride);
#pragma unroll
    for (int j = 0; j < 2 * COUNT; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 both = v[j / 2][2 * (j & 1) + i / 2];
        c[j][i] = __fmaf_rn(i < 2 ? first : second, i & 1 ? high(both) : low(both), c[j][i]);
      }
  }
  operands(a, c);
}
// What half of a tower's hidden units, before ReLU, add to the logits of rows g and g + 8; `weights` are the lane's
DEVICE void add_logits(float (&logits)[2], const float (*c)[4], const float2 (&weights)[TILES / 2]) {
  logits[0] = logits[1] = 0.f;
#pragma unroll
  for (int j = 0; j < TILES / 2; j++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      logits[r] = __fmaf_rn(fmaxf(c[j][2 * r], 0.f), weights[j].x, logits[r]);
      logits[r] = __fmaf_rn(fmaxf(c[j][2 * r + 1], 0.f), weights[j].y, logits[r]);
    }
  for (int r = 0; r < 2; r++) logits[r] = quad_sum(logits[r]);
}
DEVICE void get_weights(float2 (&weights)[TILES / 2], const char* from, int lane) {
#pragma unroll
  for (int j = 0; j < TILES / 2; j++) weights[j] = reinterpret_cast<const float2*>(from + j * 32)[lane & 3];
}
DEVICE void put_score(float logit, const Launch& g, int user, int candidate, int count, int task) {
  if (candidate < count)
    g.scores[((long long)user * g.candidates + candidate) * TASKS + task] = SIGMOIDS >> task & 1 ? sigmoid(logit) : logit;
}
