"""The one 64-bit mix behind every hash table of FLAME and behind `mapping = "hash"` of item ids.

It is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words in which every input bit
changes about half of the output bits. Stored indexes and trained tables depend on it: it must never change.
"""

from __future__ import annotations

import numpy as np

from flame.jit import Integer, kernel

_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@kernel
def mix64(value: Integer) -> np.uint64:
    """The mixed bits of an int64."""
    word = np.uint64(value) + _STEP
    word = (word ^ (word >> _S30)) * _FIRST
    word = (word ^ (word >> _S27)) * _SECOND
    return word ^ (word >> _S31)
