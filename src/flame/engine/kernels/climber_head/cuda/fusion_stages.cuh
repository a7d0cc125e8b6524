// What a CTA of the fusion does, and the stages of weights that it takes.
#pragma once
#include "products.cuh"
#include "slots.cuh"

constexpr int BLOCKS = 2;
constexpr int DIM = 32 * HEADS;
constexpr int STEPS = DIM / 16;
constexpr int TILES = DIM / 8;
constexpr int CHUNK = 64;  // hidden units of a stage
constexpr int CHUNKS = FFN / CHUNK;
constexpr int WARPS = GROUPS * GROUP_WARPS;
constexpr int GROUP_CANDIDATES = GROUP_WARPS * 8;
constexpr int CANDIDATES = GROUPS * GROUP_CANDIDATES;
constexpr float EPS = 1e-5f;

// Stages, with fp32 behind matrices. A head: queries, keys and values, their biases. A chunk of hidden units: first and second
// product, the first's biases. The gate's first product, its biases, then the second product's biases of the layer and its
// norm's weight and bias. The gate's second product, one block's part above the other's, a bias a block.
constexpr int HEAD = 2 * DIM * 96;
constexpr int HEAD_BYTES = HEAD + 4 * 96;
constexpr int FIRST = 2 * DIM * CHUNK;
constexpr int CHUNK_BYTES = 2 * FIRST + 4 * CHUNK;
constexpr int SQUEEZE = 2 * BLOCKS * DIM * SQUEEZED;
constexpr int NORM = SQUEEZE + 4 * SQUEEZED;
constexpr int SQUEEZE_BYTES = NORM + 12 * DIM;
constexpr int EXCITE = 2 * BLOCKS * SQUEEZED * DIM;
constexpr int EXCITE_BYTES = EXCITE + 4 * BLOCKS * DIM;
constexpr int CHUNKS_AT = HEADS * HEAD_BYTES;
constexpr int SQUEEZE_AT = CHUNKS_AT + CHUNKS * CHUNK_BYTES;
constexpr int EXCITE_AT = SQUEEZE_AT + SQUEEZE_BYTES;

DEVICE constexpr int largest(int a, int b) { return a > b ? a : b; }
constexpr int SLOT = largest(largest(HEAD_BYTES, CHUNK_BYTES), largest(SQUEEZE_BYTES, EXCITE_BYTES));
using Ring = Slots<SLOTS, SLOT, 3>;

struct Launch {
  const char* x;        // [users, BLOCKS, rows, DIM] bf16
  char* wide;           // [users, rows, BLOCKS * DIM] bf16, columns in the order of lanes
  const char* weights;
  const float* scales;  // [SCENARIOS]: log2(e) / temperature
  const int* header;    // [users, header_words]
  long long user_bytes, block_bytes;
  int row_bytes, first_row, header_words, candidates, tiles;
};

// What a CTA does
struct Place {
  int user, start;
  DEVICE Place(const Launch& g) {
    user = blockIdx.x / g.tiles;
    start = blockIdx.x % g.tiles * CANDIDATES;
  }
  DEVICE int word(const Launch& g, int which) const { return g.header[(long long)user * g.header_words + which]; }
  DEVICE int count(const Launch& g) const { return min(word(g, HEADER_COUNT), g.candidates); }
  DEVICE bool live(const Launch& g) const { return start < count(g); }
};

// Stage i of all
DEVICE void send_stage(Ring& ring, const Launch& g, int i) {
  if (i < HEADS)
    ring.fill(g.weights + i * HEAD_BYTES, HEAD_BYTES);
  else if (i < HEADS + CHUNKS)
    ring.fill(g.weights + CHUNKS_AT + (i - HEADS) * CHUNK_BYTES, CHUNK_BYTES);
  else if (i == HEADS + CHUNKS)
    ring.fill(g.weights + SQUEEZE_AT, SQUEEZE_BYTES);
  else
    ring.fill(g.weights + EXCITE_AT, EXCITE_BYTES);
}
// Weights do not wait for the count: without a live row, what has been asked for is waited for, and no more
DEVICE void send_stages(Ring& ring, const Launch& g, const Place& place) {
  constexpr int STAGES = HEADS + CHUNKS + 2;
  const int early = min(STAGES, SLOTS);
#pragma unroll 1
  for (int i = 0; i < early; i++) send_stage(ring, g, i);
  if (!place.live(g)) {
    ring.drain();
    return;
  }
#pragma unroll 1
  for (int i = early; i < STAGES; i++) send_stage(ring, g, i);
}
