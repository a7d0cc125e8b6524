// All layers in one launch, for few rows: all warps of a CTA work on the same TILES tiles of 16 rows. A warp has one head of
// one tile in attention, some of the hidden columns, then one of the n8 tiles of the second product.
//   TILES, SLOTS
#include "feed_forward.cuh"
#include "redo.cuh"
#include "stages.cuh"

constexpr int WARPS = COLUMNS;
constexpr int FFN_STEPS = FFN / 16;
constexpr int HIDDEN_WORDS = FFN_STEPS * LANES;  // uint4 of 16 rows of the hidden layer
constexpr int OUT_WORDS = COLUMNS * LANES;       // float4 of 16 rows of the second product
static_assert(FFN_STAGES <= SLOTS, "all stages of the feed-forward net stay in the ring until they are used");
static_assert(TILES * HEADS <= WARPS, "every head of every tile has a warp");

DEVICE void team_barrier() { warps_barrier<WARPS * LANES>(); }

struct Team {
  const Launch& g;
  const Tile& t;
  const Ring& ring;
  uint4 *y, *hidden_rows, *x;  // per tile TILE, HIDDEN_WORDS and OUT_WORDS apart; the second product takes the place of x
  int warp, lane;
  Position place;

  DEVICE void next() {
    ring.release(place, lane);
    place.next();
  }
  DEVICE bool history(int tile) const { return t.first + tile < t.history; }
  DEVICE bool live(int tile) const { return t.first + tile < t.end; }
  DEVICE uint4* x_of(int tile) const { return x + tile * OUT_WORDS + lane; }

  DEVICE void load() {
    if (warp < TILES) {
      int rows;
      const char* from = strip_rows(g, t, t.first + warp, UNIT, rows);
      if (!live(warp)) rows = 0;
      u32 f[STEPS][4];
      load_rows(f, from, 0, rows, lane);
      put_rows(x_of(warp), f);
    }
    team_barrier();
  }

  // Keys and values of a layer, into the state; which warp has which part turns with the head
  DEVICE void publish(int layer) {
    constexpr int PARTS = 2 * TILES;
#pragma unroll 1
    for (int h = 0; h < HEADS; h++) {
      const char* w = ring.wait(place);
#pragma unroll 1
      for (int part = (warp + WARPS * PARTS - h * PARTS) % WARPS; part < PARTS; part += WARPS) {
        const int tile = part >> 1;
        if (history(tile)) {
          char* to = t.keys(layer, h) + (t.first + tile) * UNIT_BYTES;
          u32 f[STEPS][4];
          float a[4][4];
          get_rows(f, x_of(tile));
          if (part & 1) {
            project_values(a, f, w, lane);
            store_values(to, a, lane);
          } else {
            project_keys(a, f, w, lane);
            store_keys(to, a, lane);
          }
        }
      }
      next();
    }
    fence_bulk();
    team_barrier();
    if (threadIdx.x < HEADS) add_release(counter(g, t, layer, threadIdx.x), min(TILES, t.history - t.first));
  }

  // y = attention + x
  DEVICE void attention(int layer, float scale, bool last) {
    const int head = warp % HEADS, tile = warp / HEADS;
    const bool candidates = !history(tile), active = tile < TILES && live(tile) && (candidates || !last);
    Attention a;
    u32 q[2][4];
    a.init();
    const bool events = active && !candidates;
    const uint4 first = first_key(events ? t.keys(layer, head) + (t.first + tile) * UNIT_BYTES : g.weights, lane);
#pragma unroll 1
    for (int h = 0; h < HEADS; h++) {
      const char* w = ring.wait(place);
      if (active && h == head) {
        u32 f[STEPS][4];
        get_rows(f, x_of(tile));
        make_queries(q, f, w, scale, lane);
        if (candidates) {
          attend_itself(a, q, f, w + QUERY_BYTES, lane);
        } else {
          float shift[2];
          logit_of_key(shift, q, first);
          a.shift(shift);
        }
      }
      next();
    }
    int left = t.length;
#pragma unroll 1
    for (; left >= CHUNK * UNIT; left -= CHUNK * UNIT)
#pragma unroll 1
      for (int h = 0; h < HEADS; h++) {
        const char* kv = ring.wait(place);
        if (active && h == head) attend<4>(a, q, kv, lane);
        next();
      }
    if (left > 0)
#pragma unroll 1
      for (int h = 0; h < HEADS; h++) {
        const char* kv = ring.wait(place);
        if (active && h == head) attend_rest(a, q, kv, left, lane);
        next();
      }
    if (!active) return;
    float sums[2];
    u32 part[2][4];
    row_totals(sums, a);
    const bool good0 = in_range(sums[0]), good1 = in_range(sums[1]);
    if (__builtin_expect(__any_sync(~0u, !good0 | !good1), 0)) {
      const char* w = g.weights + (size_t)(layer * BLOCKS + t.block) * LAYER_BYTES + head * HEAD_BYTES;
      const HeadOfRows rows{x_of(tile), w, t.keys(layer, head), t.length, head, t.first + tile, scale, candidates};
      redo(part, rows, good0, good1);
    } else {
      add_residual(part, a.out, sums, x_of(tile) + 2 * head * LANES);
    }
    put(y + tile * TILE + 2 * head * LANES + lane, part[0]);
    put(y + tile * TILE + (2 * head + 1) * LANES + lane, part[1]);
  }

  // Hidden columns of all tiles
  DEVICE void first_product(const Position (&places)[FFN_STAGES]) {
#pragma unroll
    for (int i = 0; i < (FFN_STEPS + WARPS - 1) / WARPS; i++) {
      const int step = warp + WARPS * i, s = step % HIDDEN_STEPS;
      if (step >= FFN_STEPS) break;
      Position p = places[0];
      for (int j = 0; j < step / HIDDEN_STEPS; j++) p.next();
      const char* w = ring.wait(p);
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        u32 f[STEPS][4], g16[4];
        get_rows(f, y + m * TILE + lane);
        hidden(g16, f, first_weights(w, s), first_bias(w, s), lane);
        put(hidden_rows + m * HIDDEN_WORDS + step * LANES + lane, g16);
      }
    }
  }

  // The warp's eight columns of all tiles; the last stage is kept, the norm's parameters are in it
  DEVICE void second_product(const Position (&places)[FFN_STAGES]) {
    float a[TILES][4];
#pragma unroll
    for (int m = 0; m < TILES; m++) a[m][0] = a[m][1] = a[m][2] = a[m][3] = 0.f;
#pragma unroll
    for (int j = 0; j < FFN_STAGES; j++) {
      const char* w = ring.wait(places[j]);
#pragma unroll
      for (int s = 0; s < HIDDEN_STEPS; s++) {
        const char* matrices = second_weights(w) + (s * COLUMNS + warp) * (2 * MATRIX);
        const uint2 v = load_two_matrices(matrices + (lane & 15) * 16);
#pragma unroll
        for (int m = 0; m < TILES; m++) {
          u32 f[4];
          get(f, hidden_rows + m * HIDDEN_WORDS + (j * HIDDEN_STEPS + s) * LANES + lane);
          mma(a[m], f, v.x, v.y);
        }
      }
      if (j < FFN_STAGES - 1) ring.release(places[j], lane);
    }
#pragma unroll
    for (int m = 0; m < TILES; m++)
      reinterpret_cast<float4*>(x)[m * OUT_WORDS + warp * LANES + lane] = make_float4(a[m][0], a[m][1], a[m][2], a[m][3]);
  }

  DEVICE void norm(const Position& parameters, bool last) {
    u32 f[STEPS][4], before[STEPS][4];
    float a[COLUMNS][4];
    get_rows(before, y + warp * TILE + lane);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const float4 v = reinterpret_cast<const float4*>(x)[warp * OUT_WORDS + j * LANES + lane];
      a[j][0] = v.x;
      a[j][1] = v.y;
      a[j][2] = v.z;
      a[j][3] = v.w;
    }
    __syncwarp();
    add_norm(f, before, a, norm_parameters(ring.at(parameters)), lane);
    put_rows(x_of(warp), f);
    if (last && live(warp) && !history(warp)) {
      int rows;
      char* to = strip_rows(g, t, t.first + warp, UNIT, rows);
      store_rows(to, f, 0, rows, lane);
    }
  }

  DEVICE void feed_forward(bool last) {
    Position places[FFN_STAGES];
#pragma unroll
    for (int j = 0; j < FFN_STAGES; j++) {
      places[j] = place;
      place.next();
    }
    first_product(places);
    team_barrier();
    second_product(places);
    team_barrier();
    if (warp < TILES) norm(places[FFN_STAGES - 1], last);
    ring.release(places[FFN_STAGES - 1], lane);
  }

  DEVICE void run() {
    load();
#pragma unroll 1
    for (int layer = 0; layer < LAYERS; layer++) {
      const bool last = layer == LAYERS - 1;
      const float scale = scale_of(g, t, layer);  // on its way while keys are made
      if (t.any_history) publish(layer);
      // No sooner: what waits behind a launch takes places from launches of other streams
      if (last) launch_dependents();
      if (last && !t.any_candidates) break;
      attention(layer, scale, last);
      team_barrier();
      feed_forward(last);
      team_barrier();
    }
  }
};

extern "C" __global__ void __launch_bounds__((WARPS + 1) * LANES, 1) climber_team(const __grid_constant__ Launch g) {
  DYNAMIC_SHARED(memory);
  __shared__ Strips strips;
  __shared__ Tile t;
  __shared__ __align__(8) u64 barriers[2 * SLOTS];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const Ring ring{memory, shared_address(barriers), shared_address(barriers + SLOTS)};
  if (threadIdx.x == 0) ring.init(WARPS);
  take_tile<UNIT, TILES>(g, strips, t);
  if (t.any()) {
    if (warp == WARPS) {
      if (lane == 0) send_stages<true>(g, t, true, ring);
    } else {
      uint4* y = reinterpret_cast<uint4*>(memory + SLOTS * SLOT);
      uint4* hidden_rows = y + TILES * TILE;
      Team team{g, t, ring, y, hidden_rows, hidden_rows + TILES * HIDDEN_WORDS, warp, lane};
      wait_for_kernel_before();
      team.run();
    }
  }
  leave(g, strips);
}
