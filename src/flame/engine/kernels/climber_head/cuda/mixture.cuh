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
  const char* wide;     // [users, rows, INPUTS] bf16
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
  load_rows(x, rows + (long long)min(row, g.rows - 1) * g.row_bytes, rows + (long long)min(row + 8, g.rows - 1) * g.row_bytes, lane);
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
DEVICE void get_outputs(u32 (&a)[TILES / 2][4], const uint4* from) {
#pragma unroll
  for (int k = 0; k < TILES / 2; k++) {
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
// All experts' outputs by a task's shares, as an operand; of an expert the outputs lie `stride` further
DEVICE void mix(u32 (&a)[TILES / 2][4], const float (&share)[4], const uint4* outputs, int stride, int lane) {
  float c[TILES][4] = {};
#pragma unroll
  for (int expert = 0; expert < EXPERTS; expert++) {
    const int owner = (lane & ~3) + expert / 2;
    const float first = __shfl_sync(~0u, share[expert & 1], owner), second = __shfl_sync(~0u, share[2 + (expert & 1)], owner);
    u32 v[TILES / 2][4];
    get_outputs(v, outputs + expert * stride);
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const u32 both = v[j / 2][2 * (j & 1) + i / 2];
        c[j][i] = __fmaf_rn(i < 2 ? first : second, i & 1 ? high(both) : low(both), c[j][i]);
      }
  }
  operands(a, c);
}
// Scores of a task from a tower's hidden units before ReLU; `vectors` are its output weights and bias
DEVICE void score(const float (&c)[TILES][4], const char* vectors, const Launch& g, int user, int first, int count, int task, int lane) {
  float logits[2] = {};
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    const float2 weight = reinterpret_cast<const float2*>(vectors + j * 32)[lane & 3];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      logits[r] = __fmaf_rn(fmaxf(c[j][2 * r], 0.f), weight.x, logits[r]);
      logits[r] = __fmaf_rn(fmaxf(c[j][2 * r + 1], 0.f), weight.y, logits[r]);
    }
  }
  const float bias = *reinterpret_cast<const float*>(vectors + 4 * DIM);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const float logit = __fadd_rn(quad_sum(logits[r]), bias);
    const int candidate = first + (lane >> 2) + 8 * r;
    if (candidate < count && (lane & 3) == 0)
      g.scores[((long long)user * g.candidates + candidate) * TASKS + task] = SIGMOIDS >> task & 1 ? sigmoid(logit) : logit;
  }
}
