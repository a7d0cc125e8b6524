// A ring of slots in shared memory between one thread, which fills them by bulk copies, and warps that read them.
#pragma once
#include "sizes.cuh"

// The walk through the slots; both sides take the same
struct Position {
  int slot = 0;
  u32 phase = 0;
  DEVICE void next() {
    if (++slot == SLOTS) {
      slot = 0;
      phase ^= 1;
    }
  }
};

struct Ring {
  char* data;
  u32 full, empty;  // the first of SLOTS barriers each

  DEVICE void init(int readers) const {
    for (int i = 0; i < SLOTS; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, readers);
    }
    barrier_fence();
  }
  DEVICE const char* at(const Position& p) const { return data + p.slot * SLOT; }
  DEVICE const char* wait(const Position& p) const {
    barrier_wait(full + 8 * p.slot, p.phase);
    return at(p);
  }
  // By every reading warp, once for every stage
  DEVICE void release(const Position& p, int lane) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(empty + 8 * p.slot);
  }
  DEVICE void fill(Position& p, const char* from, int bytes) const {
    barrier_wait(empty + 8 * p.slot, p.phase ^ 1);
    barrier_expect(full + 8 * p.slot, bytes);
    bulk_copy(shared_address(data + p.slot * SLOT), from, bytes, full + 8 * p.slot);
    p.next();
  }
  // A whole chunk: `count` units, and then the first of `units` as often as it takes
  DEVICE void fill_whole(Position& p, const char* from, int count, const char* first, int units) const {
    barrier_wait(empty + 8 * p.slot, p.phase ^ 1);
    barrier_expect(full + 8 * p.slot, CHUNK * UNIT_BYTES);
    const u32 to = shared_address(data + p.slot * SLOT);
    bulk_copy(to, from, count * UNIT_BYTES, full + 8 * p.slot);
#pragma unroll 1
    for (int more; count < CHUNK; count += more) {
      more = min(CHUNK - count, units);
      bulk_copy(to + count * UNIT_BYTES, first, more * UNIT_BYTES, full + 8 * p.slot);
    }
    p.next();
  }
};
