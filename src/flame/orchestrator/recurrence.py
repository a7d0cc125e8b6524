"""How often a history comes again: what keeping its state is worth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_FIRST_GUESS = 0.5
_WEIGHT = 0.02
"""Weight of the newest request: what fifty requests say outweighs what came before them."""


class Recurrence:
    """The share of requests whose history is among the `span` histories seen last. Not thread-safe.

    That is the share that a pool of `span` states would serve if it kept every history, whatever it does keep: so
    the answer does not depend on what was made of it before. A history that was appended to since is the same one.
    The share starts with a guess, for the first requests of a server to be served as those that come again.
    """

    def __init__(self, span: int) -> None:
        self._span = span
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self.share = _FIRST_GUESS

    def add(self, fingerprint: bytes, prefixes: Sequence[bytes] = ()) -> None:
        """Counts one request; where its history has `prefixes`, the longest stands for it."""
        recent = self._recent
        newest = known = fingerprint
        if prefixes:
            newest = prefixes[-1]
            known = next((name for name in reversed(prefixes) if name in recent), newest)
        again = known in recent
        if again:
            del recent[known]
        elif len(recent) == self._span:
            recent.popitem(last=False)
        recent[newest] = None
        self.share += _WEIGHT * (again - self.share)
