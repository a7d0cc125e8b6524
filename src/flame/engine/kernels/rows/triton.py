"""Where a row tile lies and how many of its rows are live."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def live_rows(
    words,
    tile,
    user,
    block,
    event_tiles,
    events,
    HEADER: tl.constexpr,
    CANDIDATES: tl.constexpr,
    LENGTHS: tl.constexpr,
    PREFIX: tl.constexpr,
    BM: tl.constexpr,
):
    """For tile `tile` of a user's block, event tiles first: its first row in the block, and the live rows from there.

    The latter is not positive where the tile has none, or has only events that the state holds.
    """
    header = words + user * HEADER
    slot = tl.where(tile < event_tiles, tile, tile - event_tiles) * BM
    live = tl.where(tile < event_tiles, tl.load(header + LENGTHS + block), tl.load(header + CANDIDATES)) - slot
    if PREFIX >= 0:
        held = (tile < event_tiles) & (slot + BM <= tl.load(header + PREFIX))
        live = tl.where(held, 0, live)
    return tl.where(tile < event_tiles, slot, events + slot), live
