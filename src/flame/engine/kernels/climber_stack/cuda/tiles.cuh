// Which rows a CTA owns. CTAs take tickets, and tickets go over the tiles with live rows in an order in which a tile waits
// for tickets before it, and for those of its own history, only. History tiles come first.
#pragma once
#include "sizes.cuh"

// Rows of one user and block: strips of ROWS rows, those of the history first, then those of the candidates
struct Tile {
  int user, block, pair;
  int length, count;           // live rows of history and candidates
  int scenario;
  int first, history, end;     // strips: the CTA's first, end of the history's, end of all
  char* state;
  int capacity;
  bool any_history, any_candidates;
  DEVICE bool any() const { return pair >= 0; }
  DEVICE int units() const { return (length + UNIT - 1) / UNIT; }
  DEVICE char* keys(int layer, int head) const {
    return state + STATE_HEADER + ((size_t)(layer * BLOCKS + block) * HEADS + head) * capacity * (UNIT_BYTES / UNIT);
  }
};

// Strips of every pair of user and block
struct Strips {
  int ticket, found, tile;
  unsigned short history[MOST_PAIRS], all[MOST_PAIRS];
};

DEVICE int up(int a, int b) { return (a + b - 1) / b; }

// Where the launch makes the history, the header's length: the kernel before may still be writing it into the state
DEVICE int history_length(const Launch& g, int user, int block) {
  const int* state = reinterpret_cast<const int*>(g.states[user]);
  if (!state) return 0;
  const int* lengths = g.mode == SCORE ? state + 1 : g.header + (size_t)user * g.header_words + HEADER_LENGTHS;
  return min(max(lengths[block], 0), state[0]);
}
DEVICE int candidate_count(const Launch& g, int user) {
  return min(max(g.header[(size_t)user * g.header_words + HEADER_CANDIDATES], 0), g.rows - g.events);
}

// Every thread of the CTA; ends with a barrier
template <int ROWS>
DEVICE void count_strips(const Launch& g, Strips& s) {
  for (int i = threadIdx.x; i < g.users * BLOCKS; i += blockDim.x) {
    const int user = i / BLOCKS, count = g.mode == ENCODE ? 0 : candidate_count(g, user);
    // A state need not exist where nothing is scored
    const int length = g.mode == SCORE && count == 0 ? 0 : history_length(g, user, i % BLOCKS);
    s.history[i] = up(length, ROWS);
    s.all[i] = up(length, ROWS) + up(count, ROWS);
  }
  __syncthreads();
}

// Tiles of STRIPS strips of a pair in one of the two turns: with strips of the history, then with candidates alone
template <int STRIPS>
DEVICE int tiles_of(const Launch& g, const Strips& s, int pair, int turn) {
  const int history = s.history[pair], all = s.all[pair];
  if (g.mode == SCORE) return turn ? up(all - history, STRIPS) : 0;
  return turn ? up(all, STRIPS) - up(history, STRIPS) : up(history, STRIPS);
}

// The first warp: finds the pair of the ticket and the number of the tile within pair and turn
template <int STRIPS>
DEVICE void find_tile(const Launch& g, Strips& s, int lane) {
  const int ticket = s.ticket, pairs = g.users * BLOCKS;
  int before = 0;
#pragma unroll 1
  for (int turn = 0; turn < 2; turn++)
#pragma unroll 1
    for (int base = 0; base < pairs; base += LANES) {
      const int tiles = base + lane < pairs ? tiles_of<STRIPS>(g, s, base + lane, turn) : 0;
      int sum = tiles;
      for (int d = 1; d < LANES; d *= 2) {
        const int other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
      }
      const int place = ticket - before - (sum - tiles);
      if (place >= 0 && place < tiles) {
        s.found = base + lane;
        s.tile = place + (turn && g.mode != SCORE ? up(s.history[base + lane], STRIPS) : 0);
      }
      before += __shfl_sync(~0u, sum, LANES - 1);
    }
}

// All loads before the first store, so that they are under way together
template <int STRIPS>
DEVICE void describe(const Launch& g, const Strips& s, Tile& t) {
  const int pair = s.found;
  t.pair = pair;
  if (pair < 0) return;
  const int user = pair / BLOCKS, block = pair % BLOCKS;
  const int count = g.mode == ENCODE ? 0 : candidate_count(g, user);
  const int scenario = g.header[(size_t)user * g.header_words + HEADER_SCENARIO];
  char* const state = reinterpret_cast<char*>(g.states[user]);
  const int capacity = state ? *reinterpret_cast<const int*>(state) : 0;
  const int length = history_length(g, user, block), history = s.history[pair], end = s.all[pair];
  const int first = s.tile * STRIPS + (g.mode == SCORE ? history : 0);
  t.user = user;
  t.block = block;
  t.history = history;
  t.end = end;
  t.first = first;
  t.count = count;
  t.length = length;
  t.scenario = min(max(scenario, 0), SCENARIOS - 1);
  t.state = state;
  t.capacity = capacity;
  t.any_history = first < history;
  t.any_candidates = first + STRIPS > history && end > history;
}

// Every thread of the CTA, while the kernel before may still run; ends with a barrier. The tile is kept in shared memory: it
// is read seldom, and registers are short. `pair` is -1 where no tile is left.
template <int ROWS, int STRIPS>
DEVICE void take_tile(const Launch& g, Strips& s, Tile& t) {
  if (threadIdx.x == 0) {
    s.ticket = add(g.scratch + TICKET, 1u);
    s.found = -1;
  }
  count_strips<ROWS>(g, s);
  if (threadIdx.x < LANES) {
    find_tile<STRIPS>(g, s, threadIdx.x);
    __syncwarp();
    if (threadIdx.x == 0) describe<STRIPS>(g, s, t);
  }
  __syncthreads();
}

// Every thread of the CTA, last. The last CTA makes the scratch ready for the next launch: counters are never set back,
// so it notes where they stand.
DEVICE void leave(const Launch& g, Strips& s) {
  wait_for_kernel_before();  // also where there was no tile
  __syncthreads();
  if (threadIdx.x == 0) s.found = add(g.scratch + LEAVERS, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!s.found) return;
  if (g.mode != SCORE)
    for (int i = threadIdx.x; i < g.users * BLOCKS; i += blockDim.x) g.scratch[STARTS + i] += s.history[i];
  if (threadIdx.x == 0) g.scratch[TICKET] = g.scratch[LEAVERS] = 0;
}

// The counter of strips whose keys and values of a layer's head are in the state
DEVICE u32* counter(const Launch& g, const Tile& t, int layer, int head) {
  return g.scratch + COUNTERS + ((t.pair * LAYERS + layer) * HEADS + head) * COUNTER_STRIDE;
}

// For a launch that waits so long, something is broken: an error is better than a machine that hangs
constexpr u32 MOST_POLLS = 1u << 24;

DEVICE void wait_for_keys(const u32* counter, u32 wanted) {
  u32 polls = 0;
  while ((int)(load_acquire(counter) - wanted) < 0)
    if (++polls == MOST_POLLS) give_up();
  fence_bulk();
}
