// All layers in one launch, for many rows: every warpgroup (four warps) owns a strip of 64 rows from the first layer to the
// last, its products are those of a warpgroup.
//   GROUPS, SLOTS, PIECE (keys whose logits are made together), REGISTERS (of the warps that compute)
// A CTA is GROUPS warpgroups that compute and one that needs few registers: one of its warps fills the ring, one tells other
// CTAs that the keys of a layer are in memory. Within a strip all four warps go the same way, live rows or not; a warp by
// itself has 16 of the rows.
#include "redo.cuh"
#include "wide_feed_forward.cuh"
#include "wide_rows.cuh"

struct Wide : WideRows {
  // Of events: the first key of the warp's rows, which it has stored itself
  DEVICE uint4 key_of_unit(int layer, int h) const {
    uint4 key = make_uint4(0, 0, 0, 0);
    if (history) key = first_key(t.keys(layer, h) + unit() * UNIT_BYTES, lane);
    return key;
  }
  // Queries of all heads into y, with the shifts of their logits: rows are events
  DEVICE void queries_of_events(float (&shifts)[HEADS][2], int layer, float scale) {
    u32 f[STEPS][4];
    float a[HEADS][4][4];
    const char* w[HEADS];
    uint4 first[HEADS];
    Position done = place;
#pragma unroll
    for (int h = 0; h < HEADS; h++) first[h] = key_of_unit(layer, h);
    get_rows(f, x);
#pragma unroll
    for (int h = 0; h < HEADS; h++, place.next()) {
      w[h] = ring.wait(place);
      start_from(a[h], w[h] + PROJECTION, lane);
    }
    wgmma_fence();
#pragma unroll
    for (int h = 0; h < HEADS; h++) issue_columns(a[h], f, w[h]);
#pragma unroll
    for (int h = 0; h < HEADS; h++, done.next()) {
      wait_but(HEADS - 1 - h);
      hold(a[h]);
      ring.release(done, lane);
      u32 q[2][4];
      scale_queries(q, a[h], scale);
      logit_of_key(shifts[h], q, first[h]);
      put_part(h, q);
    }
  }
  // One head's queries with the own keys and values; events make those in vain, as all strips of a CTA have these weights
  DEVICE void queries_with_own(u32 (&q)[2][4], Attention& a, int layer, int h, float scale) {
    const uint4 first = key_of_unit(layer, h);
    const char* w = ring.wait(place);
    u32 f[STEPS][4];
    float queries[4][4], own[8][4], half[4][4], logits[2], from_first[2];
    get_rows(f, x);
    start_from(queries, w + PROJECTION, lane);
    start_from(own, w + QUERY_BYTES + 2 * PROJECTION, lane);
    wgmma_fence();
    issue_columns(queries, f, w);
    issue_columns(own, f, w + QUERY_BYTES);
    wgmma_wait<0>();
    hold(queries);
    hold(own);
    next();
    scale_queries(q, queries, scale);
    half_of_columns(half, own, 0);
    logit_of_itself(logits, q, half);
    logit_of_key(from_first, q, first);
#pragma unroll
    for (int r = 0; r < 2; r++) logits[r] = history ? from_first[r] : logits[r];
    a.shift(logits);
    if (history) return;
    half_of_columns(a.out, own, 1);
#pragma unroll
    for (int r = 0; r < 2; r++) logits[r] = power_of_two(__fadd_rn(logits[r], a.start[2 * r]));
    a.start_with_own(logits);
  }

  // Columns of one head: y = attention + x, once more where rows left the range
  DEVICE void finish_head(const Attention& a, int layer, int h, float scale) {
    float sums[2];
    u32 f[2][4];
    row_totals(sums, a);
    add_residual(f, a.out, sums, part(x, h));
    const bool good0 = in_range(sums[0]), good1 = in_range(sums[1]);
    if (__builtin_expect(__any_sync(~0u, !good0 | !good1), 0)) {
      const char* w = g.weights + (size_t)(layer * BLOCKS + t.block) * LAYER_BYTES + h * HEAD_BYTES;
      const HeadOfRows rows{x, w, t.keys(layer, h), t.length, h, unit(), scale, !history};
      redo(f, rows, good0, good1);
    }
    put_part(h, f);
  }
  // Most rows have no shift, and logits without one take a third less of the tensor cores
  DEVICE void attend_history(Attention& a, const u32 (&q)[2][4]) {
    if (any_of_warpgroup(a.start[0] != 0.f || a.start[2] != 0.f, 1 + threadIdx.x / (GROUP_WARPS * LANES))) {
      move_out(a.total);
      attend_wide<true>(a, q, ones, ring, place, t.length, lane);
      move_out(a.total);
    } else {
      attend_wide<false>(a, q, ones, ring, place, t.length, lane);
    }
  }
  DEVICE void attention(int layer, float scale) {
    float shifts[HEADS][2];
    if (queries_first) queries_of_events(shifts, layer, scale);
#pragma unroll 1
    for (int h = 0; h < HEADS; h++) {
      Attention a;
      u32 q[2][4];
      a.init();
      if (queries_first) {
        float shift[2] = {shifts[0][0], shifts[0][1]};
#pragma unroll
        for (int i = 1; i < HEADS; i++)
#pragma unroll
          for (int r = 0; r < 2; r++) shift[r] = h == i ? shifts[i][r] : shift[r];
        a.shift(shift);
        get(q[0], part(y, h));
        get(q[1], part(y, h) + LANES);
      } else {
        queries_with_own(q, a, layer, h, scale);
      }
      if (t.length > 0) attend_history(a, q);
      finish_head(a, layer, h, scale);
    }
  }

  DEVICE void feed_forward() {
    float a[COLUMNS][4];
    u32 f[STEPS][4], before[STEPS][4];
    get_rows(before, y);
    if (SHORT_OF_REGISTERS || FFN_STAGES > 8)
      single_stages(a, before, ring, place, lane);
    else
      overlapped_stages(a, before, ring, place, lane);
    add_norm(f, before, a, norm_parameters(ring.at(place)), lane);
    put_rows(x, f);
    next();
  }

  DEVICE void run() {
    load();
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; layer++) {
      const bool last = layer == LAYERS - 1;
      const float scale = scale_of(g, t, layer);  // on its way while keys are made
      if (t.any_history) publish(layer);
      if (last && !t.any_candidates) break;
      if (live && !(history && last)) {
        attention(layer, scale);
        feed_forward();
      } else {
        skip(HEADS * (1 + up(t.length, CHUNK * UNIT)) + FFN_STAGES);
      }
    }
    if (live && !history) store();
  }
};

extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP_WARPS * LANES, 1)
    climber_wide(const __grid_constant__ Launch g) {
  DYNAMIC_SHARED(memory);
  __shared__ Strips strips;
  __shared__ Tile t;
  __shared__ __align__(8) u64 barriers[2 * SLOTS + HEADS];
  constexpr int WARPS = GROUPS * GROUP_WARPS;
  const int warp = __shfl_sync(~0u, threadIdx.x / LANES, 0), lane = threadIdx.x % LANES;
  const Ring ring{memory, shared_address(barriers), shared_address(barriers + SLOTS)};
  const u32 published = shared_address(barriers + 2 * SLOTS);
  if (threadIdx.x == 0) {
    ring.init(WARPS);
    for (int h = 0; h < HEADS; h++) barrier_init(published + 8 * h, WARPS);
  }
  u32* ones = reinterpret_cast<u32*>(memory + SLOTS * SLOT + 2 * WARPS * TILE * sizeof(uint4));
  if (threadIdx.x < LANES) ones[threadIdx.x] = ONES;
  fence_shared();
  take_tile<STRIP, GROUPS>(g, strips, t);
  if (t.any()) {
    const bool queries_first = !t.any_candidates;
    if (warp >= WARPS) {
      lower_registers<24>();
      if (warp == WARPS && lane == 0) send_stages<false>(g, t, queries_first, ring);
      if (warp == WARPS + 1 && lane == 0 && t.any_history)
        for (int layer = 0; layer < LAYERS; layer++)
          for (int h = 0; h < HEADS; h++) {
            barrier_wait(published + 8 * h, layer & 1);
            add_release(counter(g, t, layer, h), min(GROUPS, t.history - t.first));
          }
    } else {
      raise_registers<REGISTERS>();
      const int index = t.first + warp / GROUP_WARPS;
      uint4* x = reinterpret_cast<uint4*>(memory + SLOTS * SLOT) + 2 * warp * TILE + lane;
      const bool history = index < t.history, live = index < t.end;
      Wide wide{{g, t, ring, x, x + TILE, Matrices(ones, 0, 0), published, index, warp % GROUP_WARPS, lane, history, live, queries_first}};
      wait_for_kernel_before();
      wide.run();
    }
  }
  leave(g, strips);
}
