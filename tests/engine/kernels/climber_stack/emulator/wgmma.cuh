// Products of a warpgroup, as late as they may happen: what they read and write is touched when they are waited for, so a
// slot that is given back or an accumulator that is read too early shows. Addresses come from the descriptor alone.
#pragma once
#include <deque>

#include "ptx.cuh"

struct Matrices {
  u32 low, high;
  Matrices(const void* p, int along, int across) : low(shared_address(p) >> 4 | (u32)along >> 4 << 16), high((u32)across >> 4) {}
  Matrices operator+(int bytes) const {
    Matrices moved = *this;
    moved.low += bytes >> 4;
    return moved;
  }
  const char* start() const { return shared_pointer((low & 0x3fff) << 4); }
  int along() const { return low >> 16 << 4; }
  int across() const { return high << 4; }
};

struct Product {
  float (*c)[4];
  int tiles;
  u32 rows[2][8];  // a's row g and row g + 8, two steps of the sum a word
  Matrices b;
  bool transposed, from_zero;

  float of_b(int step, int column) const {
    const char* matrix = b.start() + step / 8 * b.along() + column / 8 * b.across();
    unsigned short v;
    memcpy(&v, transposed ? matrix + step % 8 * 16 + column % 8 * 2 : matrix + column % 8 * 16 + step % 8 * 2, 2);
    return __uint_as_float((u32)v << 16);
  }
  void run() const {
    const int t = threadIdx.x % 4;
    for (int j = 0; j < tiles; j++)
      for (int i = 0; i < 4; i++) {
        float sum = from_zero ? 0.f : c[j][i];
        for (int k = 0; k < 16; k++) sum += half_of(rows[i / 2][k / 2], k % 2) * of_b(k, 8 * j + 2 * t + i % 2);
        c[j][i] = sum;
      }
  }
};

// Of a CUDA thread, by its index: a CTA is a thread of the operating system
struct Flight {
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
};
inline thread_local Flight flights[machine::MOST_THREADS];
inline Flight& flight() { return flights[threadIdx.x]; }

// Every instruction is the whole warpgroup's, and all its threads have the same descriptor
struct Agreement {
  u32 low[128], high[128];
};
inline thread_local Agreement agreements[machine::MOST_THREADS / 128];
inline void meet(u32 low, u32 high) {
  const int group = threadIdx.x / 128, me = threadIdx.x % 128;
  Agreement& all = agreements[group];
  all.low[me] = low;
  all.high[me] = high;
  machine::group_wait(2 + group, 128);
  if (all.low[0] != low || all.high[0] != high) { fprintf(stderr, "warps of a warpgroup do not agree\n"); abort(); }
  machine::group_wait(2 + group, 128);
}

inline bool any_of_warpgroup(bool mine, int) {
  const int group = threadIdx.x / 128;
  Agreement& all = agreements[group];
  all.low[threadIdx.x % 128] = mine;
  machine::group_wait(2 + group, 128);
  bool any = false;
  for (u32 one : all.low) any |= one != 0;
  machine::group_wait(2 + group, 128);
  return any;
}

inline void issue(float (*c)[4], int tiles, const u32 (&a)[4], Matrices b, bool transposed, bool from_zero = false) {
  meet(b.low, b.high);
  struct Fragment { u32 a[4]; } all[32], mine;
  memcpy(mine.a, a, sizeof mine.a);
  machine::exchange(mine, all);
  Product p{c, tiles, {}, b, transposed, from_zero};
  const int first = threadIdx.x % 32 / 4 * 4;
  for (int k = 0; k < 8; k++)
    for (int half = 0; half < 2; half++) p.rows[half][k] = all[first + k % 4].a[k / 4 * 2 + half];
  flight().open.push_back(p);
}
template <int TILES_OF_8>
inline void wgmma(float (&c)[TILES_OF_8][4], const u32 (&a)[4], Matrices b) { issue(c, TILES_OF_8, a, b, false); }
template <int TILES_OF_8>
inline void wgmma_from_zero(float (&c)[TILES_OF_8][4], const u32 (&a)[4], Matrices b) { issue(c, TILES_OF_8, a, b, false, true); }
inline void wgmma_transposed(float (&c)[4][4], const u32 (&a)[4], Matrices b) { issue(c, 4, a, b, true); }

inline void wgmma_fence() { meet(1, 1); }
inline void wgmma_commit() {
  meet(2, 2);
  flight().groups.push_back(std::move(flight().open));
  flight().open.clear();
}
template <int COUNT> inline void wgmma_wait() {
  meet(3, COUNT);
  for (; flight().groups.size() > COUNT; flight().groups.pop_front())
    for (const Product& product : flight().groups.front()) product.run();
}
template <int TILES_OF_8> inline void hold(float (&)[TILES_OF_8][4]) {}
template <int TILES_OF_8> inline void move_out(float (&)[TILES_OF_8][4]) {}
