// What is fixed for a model, from the definitions of the compiler, and how its weights lie in memory: as matrices of 8 x 8
// bf16, 128 bytes each with rows of 16 bytes, which is how ldmatrix and wgmma take them.
//   LAYERS, BLOCKS, HEADS, FFN, HIDDEN (columns of the hidden layer in one stage), SCENARIOS
//   HEADER_SCENARIO, HEADER_CANDIDATES, HEADER_LENGTHS: words of a user's header
// and of a configuration: SLOTS of the ring and what the kernels say
#pragma once
#include "ptx.cuh"

constexpr int DIM = 32 * HEADS;
constexpr int LANES = 32;
constexpr int STEPS = DIM / 16;        // k16 steps over the columns of x
constexpr int COLUMNS = DIM / 8;       // n8 tiles over the columns of x
constexpr int TILE = STEPS * LANES;    // uint4 of 16 rows of x as A fragments
constexpr int ROW_WORDS = DIM / 2;     // 32-bit words of a row of x

constexpr int MATRIX = 128;  // bytes

// One head's queries, then its keys and values: weights, bias in fp32. Weights: 8 columns after the other, in each the
// steps of the sum; a matrix has a row for a column.
constexpr int PROJECTION = 64 * DIM;
constexpr int BIAS = 128;
constexpr int QUERY_BYTES = PROJECTION + BIAS;
constexpr int KEY_VALUE_BYTES = 2 * QUERY_BYTES;
constexpr int HEAD_BYTES = QUERY_BYTES + KEY_VALUE_BYTES;

// One stage of the feed-forward net: HIDDEN columns of the first product, the same rows of the second, bias of the first.
// The second's weights: 16 steps of the sum after the other, in each the columns; matrices as the others'.
// Behind the last stage: bias of the second product, weight and bias of the norm.
constexpr int FFN_STAGES = FFN / HIDDEN;
constexpr int HIDDEN_STEPS = HIDDEN / 16;
constexpr int FIRST_BYTES = 2 * DIM * HIDDEN;
constexpr int FFN_BYTES = 2 * FIRST_BYTES + 4 * HIDDEN;
constexpr int FFN_STRIDE = (FFN_BYTES + 127) / 128 * 128;
constexpr int NORM_BYTES = 12 * DIM;
constexpr int FFN_START = HEADS * HEAD_BYTES;
constexpr int LAYER_BYTES = (FFN_START + (FFN_STAGES - 1) * FFN_STRIDE + FFN_BYTES + NORM_BYTES + 127) / 128 * 128;

// Keys and values of 16 rows of a head (2 KB), of which 8 make a stage. Of 8 rows each: four matrices of keys, 8 columns
// after the other, then four of values; a matrix has a row for a row.
constexpr int UNIT = 16;
constexpr int UNIT_BYTES = 2048;
constexpr int HALF_UNIT = UNIT_BYTES / 2;
constexpr int VALUES = 4 * MATRIX;  // behind the keys
constexpr int CHUNK = 8;
constexpr int STATE_HEADER = 256;

DEVICE constexpr int largest(int a, int b) { return a > b ? a : b; }
constexpr int SLOT = (largest(largest(HEAD_BYTES, CHUNK * UNIT_BYTES), FFN_BYTES + NORM_BYTES) + 127) / 128 * 128;

// Scratch memory of launches, in words: control, what the counters stood at, the counters (a cache sector each)
constexpr int TICKET = 0;
constexpr int LEAVERS = 32;
constexpr int STARTS = 64;
constexpr int MOST_PAIRS = 512;
constexpr int COUNTERS = STARTS + MOST_PAIRS;
constexpr int COUNTER_STRIDE = 8;

enum Mode { RANK = 0, ENCODE = 1, SCORE = 2 };

struct Launch {
  char* x;                  // [users, BLOCKS, rows, DIM] bf16
  const char* weights;      // [LAYERS, BLOCKS, LAYER_BYTES]
  const float* scales;      // [LAYERS, BLOCKS, SCENARIOS]: log2(e) / temperature
  const int* header;        // [users, header_words]
  const long long* states;  // [users]
  u32* scratch;
  int header_words, users, events, rows, mode;
};
