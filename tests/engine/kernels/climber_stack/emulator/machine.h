// A machine that runs CUDA threads on a CPU: a CTA is a thread of the operating system, its CUDA threads are coroutines.
// What a warp does together is an exchange that every lane waits for.
#pragma once
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace machine {

constexpr int LANE_COUNT = 32;
constexpr int STACK = 256 * 1024;
constexpr int MOST_SHARED = 232448;
constexpr int MOST_THREADS = 1024;

struct Warp {
  uint64_t arrivals = 0;
  unsigned char values[2][LANE_COUNT][64];
};
struct Group {  // a barrier of many threads
  int arrived = 0;
  uint64_t generation = 0;
};
struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::function<bool()> ready;  // none: it can go on
  unsigned index;
  uint64_t exchanges = 0;
  bool done = false;
};
struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Group groups[2 + MOST_THREADS / 128];  // of the CTA, of some of its warps, of warpgroups
  ucontext_t scheduler;
  Thread* current = nullptr;
  unsigned grid = 0, index = 0;
  std::function<void()> kernel;
};

inline thread_local Block* block;
alignas(128) inline thread_local char shared[MOST_SHARED];

inline void wait_until(std::function<bool()> ready) {
  if (ready()) return;
  Thread* me = block->current;
  me->ready = std::move(ready);
  swapcontext(&me->context, &block->scheduler);
}
inline void yield() {
  Thread* me = block->current;
  sched_yield();
  swapcontext(&me->context, &block->scheduler);
}

// The values that all lanes of the warp bring, lane after lane
template <class T>
inline const T* exchange(const T& value, T (&all)[LANE_COUNT]) {
  Thread* me = block->current;
  Warp* warp = &block->warps[me->index / LANE_COUNT];
  const uint64_t number = me->exchanges++;
  memcpy(warp->values[number & 1][me->index % LANE_COUNT], &value, sizeof(T));
  warp->arrivals++;
  wait_until([=] { return warp->arrivals >= (number + 1) * LANE_COUNT; });
  for (int lane = 0; lane < LANE_COUNT; lane++) memcpy(&all[lane], warp->values[number & 1][lane], sizeof(T));
  return all;
}
inline void group_wait(int which, int threads) {
  Group* group = &block->groups[which];
  const uint64_t generation = group->generation;
  if (++group->arrived == threads) {
    group->arrived = 0;
    group->generation++;
  }
  wait_until([=] { return group->generation != generation; });
}

inline void entry() {
  block->kernel();
  block->current->done = true;
  swapcontext(&block->current->context, &block->scheduler);
}

inline void run_block(unsigned grid, unsigned index, unsigned threads, const std::function<void()>& kernel) {
  Block mine;
  block = &mine;
  mine.grid = grid;
  mine.index = index;
  mine.kernel = kernel;
  mine.warps.resize(threads / LANE_COUNT);
  memset(shared, 0xff, sizeof shared);
  for (unsigned i = 0; i < threads; i++) {
    auto t = std::make_unique<Thread>();
    t->index = i;
    t->stack.reset(new char[STACK]);
    getcontext(&t->context);
    t->context.uc_stack.ss_sp = t->stack.get();
    t->context.uc_stack.ss_size = STACK;
    t->context.uc_link = nullptr;
    makecontext(&t->context, entry, 0);
    mine.threads.push_back(std::move(t));
  }
  for (unsigned left = threads; left > 0;)
    for (auto& t : mine.threads) {
      if (t->done || (t->ready && !t->ready())) continue;
      t->ready = nullptr;
      mine.current = t.get();
      swapcontext(&mine.scheduler, &t->context);
      left -= t->done;
    }
}

// All blocks at once, as they may wait for each other
inline void run_grid(unsigned grid, unsigned threads, const std::function<void()>& kernel) {
  std::vector<std::thread> blocks;
  for (unsigned i = 0; i < grid; i++) blocks.emplace_back([=] { run_block(grid, i, threads, kernel); });
  for (auto& b : blocks) b.join();
}

}  // namespace machine
