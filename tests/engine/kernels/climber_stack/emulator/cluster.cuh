// What CTAs of a cluster do together, done by the emulated machine: their threads are several of the operating system's.
#pragma once
#include "ptx.cuh"

inline machine::Cluster& cluster() { return *machine::clusters[machine::block->index / machine::cluster_size]; }
inline thread_local u32 meetings[machine::MOST_THREADS];  // of a CUDA thread

inline void cluster_arrive() { cluster().arrived++; }
inline void cluster_wait() {
  const u32 wanted = ++meetings[threadIdx.x] * machine::cluster_size * blockDim.x;
  while (cluster().arrived < wanted) machine::yield();
}
inline uint4 load_of_cta(const uint4* p, u32 rank) {
  uint4 v;
  memcpy(&v, cluster().memory[rank] + shared_address(p), sizeof v);
  return v;
}
