// What the kernels' own ptx.cuh does with instructions of a GPU, done by the emulated machine.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "machine.h"

typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE inline
#define __device__
#define __global__
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(name) char* const name = machine::shared

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }

struct Index { unsigned x; };
#define threadIdx (Index{machine::block->current->index})
#define blockDim (Index{(unsigned)machine::block->threads.size()})
#define blockIdx (Index{machine::block->index})
#define gridDim (Index{machine::block->grid})

inline void __syncthreads() { machine::group_wait(0, machine::block->threads.size()); }
inline void __syncwarp() { int all[32]; machine::exchange(0, all); }
template <class T> inline T __shfl_sync(u32, T v, int lane) { T all[32]; return machine::exchange(v, all)[lane]; }
template <class T> inline T __shfl_xor_sync(u32, T v, int mask) { T all[32]; return machine::exchange(v, all)[threadIdx.x % 32 ^ mask]; }
template <class T> inline T __shfl_up_sync(u32, T v, int d) { T all[32]; machine::exchange(v, all); const int lane = threadIdx.x % 32; return lane >= d ? all[lane - d] : v; }
inline bool __any_sync(u32, int v) { int all[32]; machine::exchange(v, all); bool any = false; for (int a : all) any |= a != 0; return any; }

inline float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
inline float __int_as_float(int v) { return __uint_as_float(v); }
inline u32 bits(float f) { u32 v; memcpy(&v, &f, 4); return v; }
inline u32 __float_as_uint(float f) { return bits(f); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

inline u32 bf16(float f) {
  const u32 v = bits(f);
  return f != f ? 0x7fff : (v + 0x7fff + (v >> 16 & 1)) >> 16;
}
inline u32 pack(float low, float high) { return bf16(low) | bf16(high) << 16; }
inline u32 pack_relu(float low, float high) { return pack(low > 0 ? low : 0, high > 0 ? high : 0); }
inline float low(u32 v) { return __uint_as_float(v << 16); }
inline float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
inline float half_of(u32 v, int i) { return i ? high(v) : low(v); }
inline float flush(float f) { return fabsf(f) < 1.17549435e-38f ? 0.f : f; }
inline float power_of_two(float x) { return flush(exp2f(x)); }
inline float reciprocal(float x) { return 1 / x; }
inline float rough_tanh(float x) { return tanhf(x); }
inline float reciprocal_root(float x) { return 1 / sqrtf(x); }

// Lane 4 g + t has rows g and g + 8 of a (columns 2t, 2t + 1, 2t + 8, 2t + 9), column g of b, columns 2t, 2t + 1 of c
struct Operands { u32 a[4], b[2]; };
inline void mma_from(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&c)[4]) {
  Operands all[32], mine;
  memcpy(mine.a, a, sizeof a);
  mine.b[0] = b0;
  mine.b[1] = b1;
  machine::exchange(mine, all);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g, low_row = i / 2, column = 2 * t + i % 2;
    float sum = c[i];
    for (int k = 0; k < 16; k++) {
      const int owner = k % 8 / 2, part = k / 8;
      sum += half_of(all[4 * row + owner].a[2 * part + low_row], k % 2) * half_of(all[4 * column + owner].b[part], k % 2);
    }
    d[i] = sum;
  }
}
inline void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  float from[4];
  memcpy(from, c, sizeof from);
  mma_from(c, a, b0, b1, from);
}
inline u32 transpose(u32 v) {
  u32 all[32];
  machine::exchange(v, all);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  // New row g is old column g: of old rows 2t and 2t + 1
  const u32 first = all[4 * (2 * t) + g / 2], second = all[4 * (2 * t + 1) + g / 2];
  return (g % 2 ? first >> 16 : first & 0xffff) | (g % 2 ? second >> 16 : second & 0xffff) << 16;
}
inline float quad_sum(float v) {
  v = v + __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
inline float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
  return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

// Addresses in shared memory are distances, which 32 bits hold: it all belongs to one thread of the operating system
inline u32 shared_address(const void* p) { return (u32)((const char*)p - machine::shared); }
inline char* shared_pointer(u32 a) { return machine::shared + (int)a; }

// Lane 8 i + r has the address of row r of matrix i; lane 4 g + t gets columns 2t, 2t + 1 of row g of each, or of its transpose
template <int COUNT, bool TRANSPOSED> inline void matrices(u32 (&v)[COUNT], const void* row) {
  const char* rows[32];
  machine::exchange((const char*)row, rows);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < COUNT; i++)
    for (int e = 0; e < 2; e++) {
      const int r = TRANSPOSED ? 2 * t + e : g, column = TRANSPOSED ? g : 2 * t + e;
      const u32 distance = shared_address(rows[8 * i + r]);
      if (distance % 16 || distance >= machine::MOST_SHARED) { fprintf(stderr, "a matrix's row is not in shared memory\n"); abort(); }
      memcpy((char*)&v[i] + 2 * e, rows[8 * i + r] + 2 * column, 2);
    }
}
inline uint4 load_matrices(const void* row) { u32 v[4]; matrices<4, false>(v, row); return {v[0], v[1], v[2], v[3]}; }
inline uint4 load_transposed(const void* row) { u32 v[4]; matrices<4, true>(v, row); return {v[0], v[1], v[2], v[3]}; }
inline uint2 load_two_matrices(const void* row) { u32 v[2]; matrices<2, false>(v, row); return {v[0], v[1]}; }

inline u32 load_l2(const void* p) { u32 v; memcpy(&v, p, 4); return v; }
inline u32 load_acquire(const u32* p) { machine::yield(); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
inline void add_release(u32* p, u32 v) { __atomic_add_fetch(p, v, __ATOMIC_RELEASE); }
inline u32 add(u32* p, u32 v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
inline void give_up() { fprintf(stderr, "waited for keys that never came\n"); abort(); }
inline void fence_bulk() {}
inline void wait_for_kernel_before() {}
inline void launch_dependents() {}
inline void fence_shared() {}
template <int THREADS> inline void warps_barrier() { machine::group_wait(1, THREADS); }
template <int COUNT> inline void lower_registers() {}
template <int COUNT> inline void raise_registers() {}

struct Barrier {
  uint16_t expected, pending;
  int bytes : 31;
  unsigned phase : 1;
  void settle() {
    if (pending || bytes) return;
    pending = expected;
    phase ^= 1;
  }
};
static_assert(sizeof(Barrier) == 8, "a barrier has eight bytes");
inline Barrier* barrier_at(u32 b) { return (Barrier*)shared_pointer(b); }
inline void barrier_init(u32 b, int arrivals) { *barrier_at(b) = {(uint16_t)arrivals, (uint16_t)arrivals, 0, 0}; }
inline void barrier_fence() {}
inline void barrier_arrive(u32 b) { barrier_at(b)->pending--; barrier_at(b)->settle(); }
inline void barrier_expect(u32 b, int bytes) { barrier_at(b)->bytes += bytes; barrier_arrive(b); }
inline void barrier_wait(u32 b, u32 phase) {
  Barrier* barrier = barrier_at(b);
  machine::wait_until([=] { return barrier->phase != phase; });
}
inline void bulk_copy(u32 to, const void* from, int bytes, u32 b) {
  if ((uintptr_t)from % 16 || bytes % 16 || to % 16) { fprintf(stderr, "bulk copy of %d bytes is not aligned\n", bytes); abort(); }
  memcpy(shared_pointer(to), from, bytes);
  barrier_at(b)->bytes -= bytes;
  barrier_at(b)->settle();
}
