// 16 rows of a strip of 64: in shared memory from the first layer to the last, and their keys and values into the state.
#pragma once
#include "wide_products.cuh"

constexpr int GROUP_WARPS = 4;
constexpr int STRIP = GROUP_WARPS * UNIT;
constexpr bool SHORT_OF_REGISTERS = GROUPS > 2;

// One warp's 16 rows of a strip: what it keeps in shared memory, its walk through the ring, and its keys and values
struct WideRows {
  const Launch& g;
  const Tile& t;
  const Ring& ring;
  uint4 *x, *y;   // the lane's first uint4; a lane reads only what it wrote. A head's part of y holds its queries first
  Matrices ones;
  u32 published;  // a barrier a head
  int index, warp, lane;  // the strip, the warp in it
  bool history, live, queries_first;
  Position place = {};

  DEVICE void next() {
    ring.release(place, lane);
    place.next();
  }
  DEVICE void skip(int stages) {
#pragma unroll 1
    for (int i = 0; i < stages; i++) {
      ring.wait(place);
      next();
    }
  }
  DEVICE int unit() const { return index * GROUP_WARPS + warp; }
  DEVICE uint4* part(uint4* rows, int h) const { return rows + 2 * h * LANES; }
  DEVICE void put_part(int h, const u32 (&f)[2][4]) const {
    put(part(y, h), f[0]);
    put(part(y, h) + LANES, f[1]);
  }

  DEVICE void load() {
    int rows;
    const char* from = strip_rows(g, t, index, STRIP, rows);
    u32 f[STEPS][4];
    load_rows(f, from, UNIT * warp, live ? rows : 0, lane);
    put_rows(x, f);
  }
  DEVICE void store() {
    int rows;
    char* to = strip_rows(g, t, index, STRIP, rows);
    u32 f[STEPS][4];
    get_rows(f, x);
    store_rows(to, f, UNIT * warp, rows, lane);
  }

  DEVICE void tell(int h) const {
    fence_bulk();
    __syncwarp();
    if (lane == 0) barrier_arrive(published + 8 * h);
  }
  DEVICE void store_unit(int layer, int h, const float (&a)[8][4]) {
    char* to = t.keys(layer, h) + unit() * UNIT_BYTES;
    float half[4][4];
    half_of_columns(half, a, 0);
    store_keys(to, half, lane);
    half_of_columns(half, a, 1);
    store_values(to, half, lane);
    tell(h);
  }
  // Keys and values of a layer, into the state: all heads' products at once, or one head's after the other's
  DEVICE void publish_together(int layer) {
    u32 f[STEPS][4];
    float a[HEADS][8][4];
    const char* w[HEADS];
    Position done = place;
    get_rows(f, x);
#pragma unroll
    for (int h = 0; h < HEADS; h++, place.next()) {
      w[h] = ring.wait(place);
      start_from(a[h], w[h] + 2 * PROJECTION, lane);
    }
    wgmma_fence();
#pragma unroll
    for (int h = 0; h < HEADS; h++) issue_columns(a[h], f, w[h]);
#pragma unroll
    for (int h = 0; h < HEADS; h++, done.next()) {
      wait_but(HEADS - 1 - h);
      hold(a[h]);
      ring.release(done, lane);
      store_unit(layer, h, a[h]);
    }
  }
  DEVICE void publish_singly(int layer) {
    u32 f[STEPS][4];
    get_rows(f, x);
#pragma unroll 1
    for (int h = 0; h < HEADS; h++) {
      const char* w = ring.wait(place);
      float a[8][4];
      start_from(a, w + 2 * PROJECTION, lane);
      wgmma_fence();
      issue_columns(a, f, w);
      wgmma_wait<0>();
      hold(a);
      next();
      store_unit(layer, h, a);
    }
  }
  DEVICE void publish(int layer) {
    if (!history) {
      skip(HEADS);
      for (int h = 0; h < HEADS; h++) tell(h);
    } else if (SHORT_OF_REGISTERS) {
      publish_singly(layer);
    } else {
      publish_together(layer);
    }
  }
};
