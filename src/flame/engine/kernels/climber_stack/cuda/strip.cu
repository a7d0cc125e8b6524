// All layers in one launch, for many rows: every warp owns a strip of 16 TILES rows from the first layer to the last.
//   TILES, WARPS, SLOTS, UNROLL, RESIDENT (CTAs a multiprocessor), REGISTERS (of the warps that compute)
// A CTA is WARPS warps that compute and four that need few registers: one fills the ring, one tells other CTAs that the
// keys of a layer are in memory.
#include "feed_forward.cuh"
#include "redo.cuh"
#include "stages.cuh"

constexpr int STRIP = UNIT * TILES;
constexpr int X_WORDS = TILES * TILE;  // uint4 of a warp's x

// One warp's strip
struct Strip {
  const Launch& g;
  const Tile& t;
  const Ring& ring;
  uint4* x;       // the lane's first uint4; a lane reads only what it wrote
  u32 published;  // barrier
  int index, lane;
  bool history, live, queries_first;
  Position place;

  DEVICE void next() {
    ring.release(place, lane);
    place.next();
  }
  DEVICE void load() {
    int rows;
    const char* from = strip_rows(g, t, index, STRIP, rows);
    if (!live) rows = 0;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      u32 f[STEPS][4];
      load_rows(f, from, UNIT * m, rows, lane);
      put_rows(x + m * TILE, f);
    }
  }
  DEVICE void store() {
    int rows;
    char* to = strip_rows(g, t, index, STRIP, rows);
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      u32 f[STEPS][4];
      get_rows(f, x + m * TILE);
      store_rows(to, f, UNIT * m, rows, lane);
    }
  }

  // Keys and values of a layer, into the state
  DEVICE void publish(int layer) {
#pragma unroll 1
    for (int h = 0; h < HEADS; h++) {
      const char* w = ring.wait(place);
      if (history) {
        char* to = t.keys(layer, h) + index * TILES * UNIT_BYTES;
        u32 f[TILES][STEPS][4];
        float a[TILES][4][4];
        get_strip<TILES>(f, x);
        project_keys<TILES>(a, f, w, lane);
#pragma unroll
        for (int m = 0; m < TILES; m++) store_keys(to + m * UNIT_BYTES, a[m], lane);
        project_values<TILES>(a, f, w, lane);
#pragma unroll
        for (int m = 0; m < TILES; m++) store_values(to + m * UNIT_BYTES, a[m], lane);
      }
      next();
    }
    fence_bulk();
    __syncwarp();
    if (lane == 0) barrier_arrive(published);
  }

  // Queries of a head, and the shifts of its logits where the rows are events
  DEVICE void queries(u32 (&q)[TILES][2][4], float (&shift)[TILES][2], const char* w, int layer, int h, float scale) {
    // A branch costs registers: candidates read something as well, and have no use for it
    const char* keys = history ? t.keys(layer, h) + index * TILES * UNIT_BYTES : g.weights;
    uint4 first[TILES];
#pragma unroll
    for (int m = 0; m < TILES; m++) first[m] = first_key(keys + m * UNIT_BYTES, lane);
    u32 f[TILES][STEPS][4];
    get_strip<TILES>(f, x);
    make_queries<TILES>(q, f, w, scale, lane);
#pragma unroll
    for (int m = 0; m < TILES; m++) logit_of_key(shift[m], q[m], first[m]);
  }

  // Columns of one head: y = attention + x. Returns which of the lane's rows left the range, two bits a tile.
  DEVICE u32 attend_head(u32 (&y)[TILES][STEPS][4], u32 (&q)[TILES][2][4], float (&shift)[TILES][2], int layer, float scale, int h,
                         bool active) {
    Attention<TILES> a;
    a.init();
    if (queries_first) a.shift(shift);
    if (!queries_first) {
      const char* w = ring.wait(place);
      if (active) {
        queries(q, shift, w, layer, h, scale);
        if (history) {
          a.shift(shift);
        } else {
          u32 f[TILES][STEPS][4];
          get_strip<TILES>(f, x);
          attend_itself<TILES>(a, q, f, w + QUERY_BYTES, lane);
        }
      }
      next();
    }
    int left = t.length;
#pragma unroll 1
    for (; left >= CHUNK * UNIT; left -= CHUNK * UNIT) {
      const char* kv = ring.wait(place);
      if (active) attend<TILES, UNROLL>(a, q, kv, lane);
      next();
    }
    if (left > 0) {
      const char* kv = ring.wait(place);
      if (active) attend_rest<TILES>(a, q, kv, left, lane);
      next();
    }
    if (!active) return 0;
    float sums[TILES][2];
    row_totals<TILES>(sums, a);
    u32 bad = 0;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
      u32 part[2][4];
      add_residual(part, a.out[m], sums[m], x + m * TILE + 2 * h * LANES);
      bad |= ((in_range(sums[m][0]) ? 0 : 1) | (in_range(sums[m][1]) ? 0 : 2)) << (2 * m);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        y[m][2 * h][k] = part[0][k];
        y[m][2 * h + 1][k] = part[1][k];
      }
    }
    return bad;
  }

  // Heads of tiles with rows that left the range; of `bad`, two bits for every tile of every head
  DEVICE void redo_heads(u32 (&y)[TILES][STEPS][4], u32 bad, int layer, float scale) {
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
      for (int m = 0; m < TILES; m++)
      {
        const u32 rows_bad = bad >> (2 * (h * TILES + m)) & 3;
        if (__any_sync(~0u, rows_bad)) {
          const char* w = g.weights + (size_t)(layer * BLOCKS + t.block) * LAYER_BYTES + h * HEAD_BYTES;
          const HeadOfRows rows{x + m * TILE, w, t.keys(layer, h), t.length, h, index * TILES + m, scale, !history};
          u32 part[2][4];
          redo(part, rows, !(rows_bad & 1), !(rows_bad & 2));
#pragma unroll
          for (int k = 0; k < 4; k++) {
            y[m][2 * h][k] = part[0][k];
            y[m][2 * h + 1][k] = part[1][k];
          }
        }
      }
  }

  DEVICE void attention(u32 (&y)[TILES][STEPS][4], int layer, float scale, bool active) {
    constexpr bool FIRST = TILES == 1;  // the registers hold all heads' queries only then
    u32 q[FIRST ? HEADS : 1][TILES][2][4];
    float shift[FIRST ? HEADS : 1][TILES][2];
    if (FIRST && queries_first) {
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        const char* w = ring.wait(place);
        if (active) queries(q[FIRST ? h : 0], shift[FIRST ? h : 0], w, layer, h, scale);
        next();
      }
    }
    u32 bad = 0;
#pragma unroll
    for (int h = 0; h < HEADS; h++) bad |= attend_head(y, q[FIRST ? h : 0], shift[FIRST ? h : 0], layer, scale, h, active) << (2 * h * TILES);
    if (__builtin_expect(__any_sync(~0u, bad), 0)) redo_heads(y, bad, layer, scale);
  }

  DEVICE void feed_forward(const u32 (&y)[TILES][STEPS][4], bool active) {
    float a[TILES][COLUMNS][4];
#pragma unroll
    for (int m = 0; m < TILES; m++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) a[m][j][0] = a[m][j][1] = a[m][j][2] = a[m][j][3] = 0.f;
#pragma unroll 1
    for (int stage = 0; stage < FFN_STAGES; stage++) {
      const char* w = ring.wait(place);
      if (active) {
#pragma unroll
        for (int s = 0; s < HIDDEN_STEPS; s++) {
          u32 g16[TILES][4];
          hidden<TILES>(g16, y, first_weights(w, s), first_bias(w, s), lane);
#pragma unroll
          for (int j = 0; j < COLUMNS / 2; j++) {
            const uint4 v = fragments<true>(second_weights(w) + (s * (COLUMNS / 2) + j) * (4 * MATRIX), lane);
#pragma unroll
            for (int m = 0; m < TILES; m++) {
              mma(a[m][2 * j], g16[m], v.x, v.y);
              mma(a[m][2 * j + 1], g16[m], v.z, v.w);
            }
          }
        }
      }
      if (stage < FFN_STAGES - 1) next();
    }
    if (active) {
      const float2* parameters = norm_parameters(ring.at(place));
#pragma unroll
      for (int m = 0; m < TILES; m++) {
        u32 f[STEPS][4];
        add_norm(f, y[m], a[m], parameters, lane);
        put_rows(x + m * TILE, f);
      }
    }
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
      const bool active = live && !(history && last);
      u32 y[TILES][STEPS][4];
      attention(y, layer, scale, active);
      feed_forward(y, active);
    }
    if (live && !history) store();
  }
};

extern "C" __global__ void __launch_bounds__((WARPS + 4) * LANES, RESIDENT) climber_strip(const __grid_constant__ Launch g) {
  DYNAMIC_SHARED(memory);
  __shared__ Strips strips;
  __shared__ Tile t;
  __shared__ __align__(8) u64 barriers[2 * SLOTS + 1];
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const Ring ring{memory, shared_address(barriers), shared_address(barriers + SLOTS)};
  const u32 published = shared_address(barriers + 2 * SLOTS);
  if (threadIdx.x == 0) {
    ring.init(WARPS);
    barrier_init(published, WARPS);
  }
  take_tile<STRIP, WARPS>(g, strips, t);
  if (t.any()) {
    const bool queries_first = TILES == 1 && !t.any_candidates;
    if (warp >= WARPS) {
      lower_registers<24>();
      if (warp == WARPS && lane == 0) send_stages<false>(g, t, queries_first, ring);
      if (warp == WARPS + 1 && lane == 0 && t.any_history)
        for (int layer = 0; layer < LAYERS; layer++) {
          barrier_wait(published, layer & 1);
          for (int h = 0; h < HEADS; h++) add_release(counter(g, t, layer, h), min(WARPS, t.history - t.first));
        }
    } else {
      raise_registers<REGISTERS>();
      const int index = t.first + warp;
      uint4* x = reinterpret_cast<uint4*>(memory + SLOTS * SLOT) + warp * X_WORDS + lane;
      Strip strip{g, t, ring, x, published, index, lane, index < t.history, index < t.end, queries_first};
      wait_for_kernel_before();
      strip.run();
    }
  }
  leave(g, strips);
}
