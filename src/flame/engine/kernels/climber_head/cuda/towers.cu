// Gates, mixture and towers of 16 candidates, where several CTAs have made the experts' outputs: the same sums as in
// experts.cu, a task a warp.
//   as mixture.cuh says.
#include "mixture.cuh"

static_assert(TASKS <= GROUP_WARPS, "a task a warp");

// Columns of 8 matrices' rows along the sum, as operands: matrix after matrix
template <int COUNT>
DEVICE void load_columns(u32 (&b)[COUNT], const char* matrices, int lane) {
#pragma unroll
  for (int k = 0; k < COUNT; k++) b[k] = reinterpret_cast<const u32*>(matrices + k * MATRIX)[lane];
}
// An expert's outputs, its parts added
DEVICE void add_parts(uint4* to, const uint4* from) {
  float c[TILES][4] = {};
  u32 a[PARTS][TILES / 2][4];
#pragma unroll
  for (int part = 0; part < PARTS; part++) get_outputs(a[part], from + part * OUTPUTS);
  if (PARTS > 1) {
#pragma unroll
    for (int part = 0; part < PARTS; part++) add_outputs(c, a[part]);
    operands(a[0], c);
  }
  put_outputs(to, a[0]);
}

extern "C" __global__ void __launch_bounds__(GROUP_WARPS * LANES) climber_towers(const __grid_constant__ Launch g) {
  __shared__ uint4 outputs[EXPERTS * OUTPUTS];
  const int task = threadIdx.x / LANES, lane = threadIdx.x % LANES, user = blockIdx.x / g.units, unit = blockIdx.x % g.units;
  const int first = unit * UNIT, weights = min(task, TASKS - 1);
  const char* tower = g.weights + TOWERS + weights * TOWER_BYTES;
  u32 x[STEPS][4], gates[2 * STEPS], columns[TILES][DIM / 8], mixed[TILES / 2][4];
  float share[4], out[TILES][4];
  load_columns(gates, g.weights + GATES + weights * 2 * STEPS * MATRIX, lane);
#pragma unroll
  for (int j = 0; j < TILES; j++) load_columns(columns[j], tower + j * (DIM / 8) * MATRIX, lane);
  start_from(out, tower + SECOND, lane);
  const float2 bias = reinterpret_cast<const float2*>(g.weights + GATES + FIRST)[weights * 4 + (lane & 3)];
  load_inputs(x, g, user, first, lane);
  const int count = count_of(g, user);
  if (first >= count) return;
  const uint4* from = g.outputs + ((long long)user * g.units + unit) * EXPERTS * PARTS * OUTPUTS + lane;
#pragma unroll
  for (int expert = 0; expert < EXPERTS; expert += GROUP_WARPS)
    add_parts(outputs + (expert + task) * OUTPUTS + lane, from + (expert + task) * PARTS * OUTPUTS);
  share[0] = share[2] = bias.x;
  share[1] = share[3] = bias.y;
#pragma unroll
  for (int k = 0; k < STEPS; k++) mma(share, x[k], gates[2 * k], gates[2 * k + 1]);
  make_shares(share);
  __syncthreads();
  if (task >= TASKS) return;
  mix(mixed, share, outputs + lane, OUTPUTS, lane);
#pragma unroll
  for (int j = 0; j < TILES; j++)
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) mma(out[j], mixed[k], columns[j][2 * k], columns[j][2 * k + 1]);
  score(out, tower + SECOND_BYTES, g, user, first, count, task, lane);
}
