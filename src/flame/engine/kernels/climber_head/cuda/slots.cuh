// A ring of slots in shared memory between one thread, which fills them by bulk copies, and warps that read them.
#pragma once
#include "ptx.cuh"

template <int COUNT>
struct Walk {
  int slot = 0;
  u32 phase = 0;
  DEVICE void next() {
    if (++slot == COUNT) {
      slot = 0;
      phase ^= 1;
    }
  }
};

template <int COUNT, int BYTES, int UNDER_WAY>
struct Slots {
  char* data;
  u32 barriers;  // the first of COUNT that say full, then of as many that say empty
  Walk<COUNT> place, oldest;
  int open = 0;

  DEVICE Slots(char* at, u64* first) : data(at), barriers(shared_address(first)) {}
  DEVICE u32 full(int slot) const { return barriers + 8 * slot; }
  DEVICE u32 empty(int slot) const { return barriers + 8 * (COUNT + slot); }
  DEVICE void init(int readers) const {
    for (int i = 0; i < COUNT; i++) {
      barrier_init(full(i), 1);
      barrier_init(empty(i), readers);
    }
  }

  // The writer's. What is asked for together comes together, so no more is under way than it takes to keep the way full
  DEVICE void fill(const char* from, int bytes) {
    if (++open > UNDER_WAY) {
      barrier_wait(full(oldest.slot), oldest.phase);
      oldest.next();
    }
    barrier_wait(empty(place.slot), place.phase ^ 1);
    barrier_expect(full(place.slot), bytes);
    bulk_copy(shared_address(data + place.slot * BYTES), from, bytes, full(place.slot));
    place.next();
  }
  // Before it leaves without readers: all that is under way has come
  DEVICE void drain() {
    for (; oldest.slot != place.slot || oldest.phase != place.phase; oldest.next()) barrier_wait(full(oldest.slot), oldest.phase);
  }

  // A reader's: every warp takes every slot, and gives them back in order
  DEVICE const char* take() {
    barrier_wait(full(place.slot), place.phase);
    const char* found = data + place.slot * BYTES;
    place.next();
    return found;
  }
  DEVICE void release(int lane) {
    __syncwarp();
    if (lane == 0) barrier_arrive(empty(oldest.slot));
    oldest.next();
  }
};
