// The products of 64 rows of a warpgroup: projections, and attention to a head's keys in pieces of PIECE keys, of which the
// next piece's logits are under way while this one's weights are made, and the last one's values after it.
#pragma once
#include "attention.cuh"
#include "stages.cuh"
#include "wgmma.cuh"

constexpr int PIECES = CHUNK * UNIT / PIECE;
constexpr int PIECE_BYTES = PIECE / UNIT * UNIT_BYTES;
constexpr int PIECE_TILES = PIECE / 8;
constexpr int PIECE_UNITS = PIECE / UNIT;
static_assert(PIECES % 2 == 0, "two pieces take turns");

// `bias` of the columns, as accumulators start
template <int TILES_OF_8>
DEVICE void start_from(float (&c)[TILES_OF_8][4], const char* bias, int lane) {
#pragma unroll
  for (int j = 0; j < TILES_OF_8; j++) {
    const float2 b = reinterpret_cast<const float2*>(bias + j * 32)[lane & 3];
    c[j][0] = c[j][2] = b.x;
    c[j][1] = c[j][3] = b.y;
  }
  hold(c);
}
// A group of products: columns of x W, W with all steps of the sum by 8 columns
template <int TILES_OF_8>
DEVICE void issue_columns(float (&c)[TILES_OF_8][4], const u32 (&x)[STEPS][4], const char* w) {
  const Matrices b(w, MATRIX, STEPS * 2 * MATRIX);
#pragma unroll
  for (int k = 0; k < STEPS; k++) wgmma(c, x[k], b + k * 2 * MATRIX);
  wgmma_commit();
}
// All but the last `count` groups are done; `count` is known when this is compiled
DEVICE void wait_but(int count) {
  if (count == 0) wgmma_wait<0>();
  if (count == 1) wgmma_wait<1>();
  if (count == 2) wgmma_wait<2>();
}
// The first or the second half of the columns of keys and values
DEVICE void half_of_columns(float (&half)[4][4], const float (&c)[8][4], int which) {
#pragma unroll
  for (int j = 0; j < 4; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) half[j][i] = c[4 * which + j][i];
}

// Queries, and minus the shift of their logits as an operand whose columns add up to it: three parts of 8 bits
struct Queries {
  u32 q[2][4], minus_shift[4];

  DEVICE Queries(const u32 (&queries)[2][4], const float (&start)[4], int lane) {
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) q[k][i] = queries[k][i];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const u32 high_part = top_half(start[2 * r]);
      const float rest = __fsub_rn(start[2 * r], __uint_as_float(high_part));
      const u32 middle = top_half(rest), low_part = top_half(__fsub_rn(rest, __uint_as_float(middle)));
      const int column = lane & 3;
      minus_shift[r] = column == 0 ? high_part >> 16 | middle : column == 1 ? low_part >> 16 : 0;
      minus_shift[2 + r] = 0;
    }
  }
  static DEVICE u32 top_half(float v) { return __float_as_uint(v) & 0xffff0000u; }
};

// Logits of a piece minus the shift, as a group. The shift is one more step of their sum, by a matrix of ones.
template <bool SHIFTED>
DEVICE void issue_logits(float (&s)[PIECE_TILES][4], const Queries& q, const char* keys, Matrices ones) {
  const Matrices b(keys, MATRIX, HALF_UNIT);
  wgmma_fence();
  if (SHIFTED) {
    wgmma_from_zero(s, q.minus_shift, ones);
    wgmma(s, q.q[0], b);
  } else {
    wgmma_from_zero(s, q.q[0], b);
  }
  wgmma(s, q.q[1], b + 2 * MATRIX);
  wgmma_commit();
}
// Those from `keys` on are nothing
DEVICE void mask(float (&s)[PIECE_TILES][4], int keys, int lane) {
  const int key = 2 * (lane & 3);
#pragma unroll
  for (int j = 0; j < PIECE_TILES; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) s[j][i] = 8 * j + key + (i & 1) < keys ? s[j][i] : NOTHING;
}
DEVICE void weigh_piece(u32 (&p)[PIECE_UNITS][4], float (&s)[PIECE_TILES][4]) {
#pragma unroll
  for (int t = 0; t < PIECE_UNITS; t++) weigh(p[t], s[2 * t], s[2 * t + 1]);
}
DEVICE void issue_values(Attention& a, const u32 (&p)[PIECE_UNITS][4], const char* values, Matrices ones) {
  const Matrices b(values, HALF_UNIT, MATRIX);
  wgmma_fence();
#pragma unroll
  for (int t = 0; t < PIECE_UNITS; t++) {
    wgmma_transposed(a.out, p[t], b + t * UNIT_BYTES);
    wgmma(a.total, p[t], ones);
  }
  wgmma_commit();
}

// Two pieces in turn
struct Pieces {
  float s[2][PIECE_TILES][4];
  u32 p[2][PIECE_UNITS][4];
};

// One stage of keys. At its start the logits of its first piece are there, and the products with the values of the piece
// before may be under way; at its end the same holds for the next stage.
template <bool SHIFTED, bool LAST>
DEVICE void attend_chunk(Attention& a, Pieces& pieces, const Queries& q, Matrices ones, const Ring& ring, Position& place, int left,
                         bool first, int lane) {
  const char* kv = ring.at(place);
  Position before = place;
  place.next();
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    if (i + 1 < PIECES)
      issue_logits<SHIFTED>(pieces.s[(i + 1) & 1], q, kv + (i + 1) * PIECE_BYTES, ones);
    else if (!LAST)
      issue_logits<SHIFTED>(pieces.s[0], q, ring.wait(place), ones);
    hold(pieces.s[i & 1]);
    if (LAST && left < CHUNK * UNIT) mask(pieces.s[i & 1], left - i * PIECE, lane);
    weigh_piece(pieces.p[i & 1], pieces.s[i & 1]);
    issue_values(a, pieces.p[i & 1], kv + i * PIECE_BYTES + VALUES, ones);
    if (LAST && i == PIECES - 1)
      wgmma_wait<0>();
    else
      wgmma_wait<1>();
    if (i == 0 && !first) {
      before.slot = before.slot == 0 ? SLOTS - 1 : before.slot - 1;
      ring.release(before, lane);
    }
  }
}

// All keys of the history; `length` is not 0. SHIFTED where a row of the warpgroup has a shift.
template <bool SHIFTED>
DEVICE void attend_wide(Attention& a, const u32 (&queries)[2][4], Matrices ones, const Ring& ring, Position& place, int length, int lane) {
  const Queries q(queries, a.start, lane);
  Pieces pieces;
  issue_logits<SHIFTED>(pieces.s[0], q, ring.wait(place), ones);
  wgmma_wait<0>();
  const int chunks = up(length, CHUNK * UNIT);
#pragma unroll 1
  for (int c = 0; c < chunks - 1; c++) attend_chunk<SHIFTED, false>(a, pieces, q, ones, ring, place, 0, c == 0, lane);
  Position last = place;
  attend_chunk<SHIFTED, true>(a, pieces, q, ones, ring, place, length - (chunks - 1) * CHUNK * UNIT, chunks == 1, lane);
  ring.release(last, lane);
  hold(a.out);
  hold(a.total);
}
