"""One number for all that an encoded history depends on, and one for each of its prefixes."""

from __future__ import annotations

import numpy as np
import xxhash

from flame.layout import EVENT_AGE, SCENARIO, PackedViews


def fingerprint(views: PackedViews, lengths: tuple[int, ...]) -> bytes:
    """xxh3-128 of the first user's scenario, sequence lengths and event records (16 bytes).

    Equal fingerprints mean equal encoded histories of one model version. Slots beyond a length do not count, nor does
    anything that candidates alone see: user and context features.
    """
    digest = xxhash.xxh3_128(np.array([views.header[0, SCENARIO], *lengths], np.int32).data)
    for sequence, length in enumerate(lengths):
        digest.update(views.events[0, sequence, :length].data)
    return digest.digest()


def prefix_fingerprints(views: PackedViews, length: int, tile: int) -> tuple[bytes, ...]:
    """xxh3-128 of the first user's scenario and oldest `tile` events, of the oldest `2 * tile`, up to `length`.

    For models that can be appended to, whose only sequence this is: equal ones mean equal encoded events, whatever
    follows. Ages, which are counted from the newest event, take part as the gaps between events.
    """
    events = views.events[0, 0, : length // tile * tile].copy()
    ages = events[:, EVENT_AGE].copy()
    events[1:, EVENT_AGE] = ages[:-1] - ages[1:]
    events[:1, EVENT_AGE] = 0
    digest = xxhash.xxh3_128(views.header[0, SCENARIO].tobytes())
    found = []
    for start in range(0, len(events), tile):
        digest.update(events[start : start + tile].data)
        found.append(digest.digest())
    return tuple(found)
