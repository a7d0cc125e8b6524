// What goes through the ring, and in which order: one thread of a CTA sends what its other warps take.
//   keys' and values' weights of every head          where the CTA has history
//   queries' weights (with the own key's), keys and values, head by head; or all queries' first
//   stages of the feed-forward net
#pragma once
#include "ring.cuh"
#include "tiles.cuh"

// HEADS_TOGETHER, of a team: where keys of the first head are in memory, so are the others'. Not so of a warpgroup, which
// multiplies 128 keys: behind the last keys and values of a history its first are sent again, so that all are numbers.
template <bool HEADS_TOGETHER>
DEVICE void send_stages(const Launch& g, const Tile& t, bool queries_first, const Ring& ring) {
  Position p;
  const int units = t.units(), chunks = up(units, CHUNK), head_stride = t.capacity * (UNIT_BYTES / UNIT);
  const bool history = t.any_history, candidates = t.any_candidates;
  const u32 wanted = g.scratch[STARTS + t.pair] + t.history;  // where the counters stand when all strips' keys are there
  const u32* there = counter(g, t, 0, 0);
  const char* w = g.weights + (size_t)t.block * LAYER_BYTES;
  const char* keys = t.keys(0, 0);
  const int query_bytes = candidates ? HEAD_BYTES : QUERY_BYTES;
  for (int layer = 0; layer < LAYERS; layer++) {
    if (history)
      for (int h = 0; h < HEADS; h++) ring.fill(p, w + h * HEAD_BYTES + QUERY_BYTES, KEY_VALUE_BYTES);
    if (!candidates && layer == LAYERS - 1) break;
    int seen = 0;  // heads whose keys and values are there
    if (queries_first)
      for (int h = 0; h < HEADS; h++) ring.fill(p, w + h * HEAD_BYTES, query_bytes);
    for (int i = 0; i < (HEADS_TOGETHER ? 1 : HEADS); i++) {
      if (!queries_first) ring.fill(p, w + i * HEAD_BYTES, query_bytes);
      for (int c = 0; c < chunks; c++)
        for (int h = i; h < (HEADS_TOGETHER ? HEADS : i + 1); h++) {
          for (; seen <= (HEADS_TOGETHER ? 0 : h); seen++) {
            if (g.mode == SCORE)
              wait_for_kernel_before();
            else
              wait_for_keys(there + seen * COUNTER_STRIDE, wanted);
          }
          const char* first = keys + h * head_stride;
          const int left = min(CHUNK, units - c * CHUNK);
          if (!HEADS_TOGETHER)
            ring.fill_whole(p, first + c * (CHUNK * UNIT_BYTES), left, first, units);
          else
            ring.fill(p, first + c * (CHUNK * UNIT_BYTES), left * UNIT_BYTES);
        }
    }
    for (int j = 0; j < FFN_STAGES; j++)
      ring.fill(p, w + FFN_START + j * FFN_STRIDE, j == FFN_STAGES - 1 ? FFN_BYTES + NORM_BYTES : FFN_BYTES);
    there += HEADS * COUNTER_STRIDE;
    w += BLOCKS * LAYER_BYTES;
    keys += (size_t)BLOCKS * HEADS * head_stride;
  }
}

// log2(e) / temperature of the user's scenario
DEVICE float scale_of(const Launch& g, const Tile& t, int layer) {
  return g.scales[(layer * BLOCKS + t.block) * SCENARIOS + t.scenario];
}

// Address of the first row of strip `strip`, and how many rows from there are live
DEVICE char* strip_rows(const Launch& g, const Tile& t, int strip, int rows, int& live) {
  const bool history = strip < t.history;
  const int row = history ? strip * rows : (strip - t.history) * rows;
  live = (history ? t.length : t.count) - row;
  return g.x + ((size_t)t.pair * g.rows + (history ? row : g.events + row)) * (2 * DIM);
}
