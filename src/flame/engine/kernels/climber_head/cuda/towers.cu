// Gates, mixture and towers of 16 candidates, where several CTAs have made the experts' outputs: the same sums as in
// experts.cu. A warp mixes half the columns of a task, and makes half of its tower's hidden units.
//   as mixture.cuh says.
#include "mixture.cuh"

constexpr int WARPS = EXPERTS;
constexpr int HALF = DIM / 32;  // steps of a sum over half the columns
static_assert(2 * TASKS <= WARPS, "half a task a warp");

// Matrices' rows along the sum, as operands: matrix after matrix
template <int COUNT>
DEVICE void load_columns(u32 (&b)[COUNT], const char* matrices, int lane) {
#pragma unroll
  for (int k = 0; k < COUNT; k++) b[k] = reinterpret_cast<const u32*>(matrices + k * MATRIX)[lane];
}
// An expert's outputs, its parts added
DEVICE void add_parts(uint4* to, u32 (&a)[PARTS][TILES / 2][4]) {
  if (PARTS > 1) {
    float c[TILES][4] = {};
#pragma unroll
    for (int part = 0; part < PARTS; part++) add_outputs(c, a[part]);
    operands(a[0], c);
  }
  put_outputs(to, a[0]);
}

extern "C" __global__ void __launch_bounds__(WARPS* LANES) climber_towers(const __grid_constant__ Launch g) {
  __shared__ uint4 outputs[EXPERTS * OUTPUTS], mixed[WARPS / 2 * OUTPUTS];
  __shared__ float halves[WARPS][UNIT];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, task = min(warp / 2, TASKS - 1), half = warp % 2;
  const int user = blockIdx.x / g.units, first = blockIdx.x % g.units * UNIT;
  const char* tower = g.weights + TOWERS + task * TOWER_BYTES;
  u32 parts[PARTS][TILES / 2][4], x[STEPS][4], gates[2 * STEPS], columns[TILES / 2][DIM / 8], a[TILES / 2][4];
  float share[4], hidden[TILES / 2][4], logits[2];
  float2 weights[TILES / 2];
  const uint4* from = g.outputs + ((long long)blockIdx.x * EXPERTS + warp) * PARTS * OUTPUTS + lane;
  // Weights first: they need not wait
  load_columns(gates, g.weights + GATES + task * 2 * STEPS * MATRIX, lane);
  const float2 gate = reinterpret_cast<const float2*>(g.weights + GATES + FIRST)[task * 4 + (lane & 3)];
#pragma unroll
  for (int j = 0; j < TILES / 2; j++) load_columns(columns[j], tower + (half * TILES / 2 + j) * (DIM / 8) * MATRIX, lane);
  start_from(hidden, tower + SECOND + half * 2 * DIM, lane);
  get_weights(weights, tower + SECOND_BYTES + half * 2 * DIM, lane);
  const float bias = *reinterpret_cast<const float*>(tower + SECOND_BYTES + 4 * DIM);
  const int count = count_of(g, user);
  wait_for_kernel_before();
#pragma unroll
  for (int part = 0; part < PARTS; part++) get_outputs(parts[part], from + part * OUTPUTS);
  load_inputs(x, g, user, first, lane);
  if (first >= count) return;

  add_parts(outputs + warp * OUTPUTS + lane, parts);
  share[0] = share[2] = gate.x;
  share[1] = share[3] = gate.y;
#pragma unroll
  for (int k = 0; k < STEPS; k++) mma(share, x[k], gates[2 * k], gates[2 * k + 1]);
  make_shares(share);
  __syncthreads();
  u32 own[HALF][4];
  mix(own, share, outputs + half * HALF * LANES + lane, OUTPUTS, lane);
#pragma unroll
  for (int k = 0; k < HALF; k++) mixed[(warp / 2 * 2 * HALF + half * HALF + k) * LANES + lane] = make_uint4(own[k][0], own[k][1], own[k][2], own[k][3]);
  __syncthreads();
  get_outputs(a, mixed + warp / 2 * OUTPUTS + lane);
#pragma unroll
  for (int j = 0; j < TILES / 2; j++)
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) mma(hidden[j], a[k], columns[j][2 * k], columns[j][2 * k + 1]);
  add_logits(logits, hidden, weights);
  if ((lane & 3) == 0) {
    halves[warp][lane >> 2] = logits[0];
    halves[warp][(lane >> 2) + 8] = logits[1];
  }
  __syncthreads();
  if (half == 1 || warp >= 2 * TASKS || lane >= UNIT) return;
  put_score(__fadd_rn(__fadd_rn(halves[warp][lane], halves[warp + 1][lane]), bias), g, user, first + lane, count, task);
}
