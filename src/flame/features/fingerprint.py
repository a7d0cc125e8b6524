"""One number for all that an encoded history depends on."""

from __future__ import annotations

import numpy as np
import xxhash

from flame.layout import SCENARIO, PackedViews


def fingerprint(views: PackedViews, lengths: tuple[int, ...]) -> bytes:
    """xxh3-128 of the first user's scenario, sequence lengths and event records (16 bytes).

    Equal fingerprints mean equal encoded histories of one model version. Slots beyond a length do not count, nor does
    anything that candidates alone see: user and context features.
    """
    digest = xxhash.xxh3_128(np.array([views.header[0, SCENARIO], *lengths], np.int32).data)
    for sequence, length in enumerate(lengths):
        digest.update(views.events[0, sequence, :length].data)
    return digest.digest()
