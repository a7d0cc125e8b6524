"""Room for encoded histories: allocated when the orchestrator starts, lent to requests, kept for later ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from flame.engine.backends.base import Engine, HistoryState
from flame.metrics import Metrics
from flame.orchestrator.prefixes import PrefixIndex
from flame.orchestrator.profiles import ProfileSet


class Held:
    """One state that requests hold, or that is kept though nobody does. The pool alone changes it.

    As long as it has `holders` it is neither evicted nor written again. `ready` says that its history is in it, and
    `lost` that a launch which was given up may still touch it: then it is lent to nobody any more. `prefixes` are the
    fingerprints of its oldest events (`records.Features`), and `prefix` is how many events were in it when it was
    taken, which its encode leaves as they are.
    """

    __slots__ = ("fingerprint", "history", "holders", "lost", "prefix", "prefixes", "ready", "state")

    def __init__(
        self, state: HistoryState, history: int, fingerprint: bytes, prefixes: Sequence[bytes] = (), prefix: int = 0
    ) -> None:
        self.state = state
        self.history = history
        self.fingerprint = fingerprint
        self.prefixes = prefixes
        self.prefix = prefix
        self.holders = 1
        self.ready = False
        self.lost = False


class StatePool:
    """States by profile length, a fixed number of each. Not thread-safe: the schedule's lock guards it.

    There is one state for every slot of every executor, and `keep` more; no more histories are encoded at a time than
    there are states that nobody holds (`free`). The pool lives and dies with its engine, so what is kept was encoded by
    the model that reads it.
    """

    def __init__(self, engine: Engine, profiles: ProfileSet, executors: int, keep: int, metrics: Metrics) -> None:
        self._keep = keep
        self._metrics = metrics
        self._tile = engine.append_tile
        self._free: dict[int, list[HistoryState]] = {}
        self._kept: dict[int, OrderedDict[bytes, Held]] = {}
        self._starts: dict[int, PrefixIndex[Held]] = {}
        for tier in profiles.tiers:
            self._free[tier.history] = [engine.state(tier.history) for _ in range(executors * tier.widest + keep)]
            self._kept[tier.history] = OrderedDict()
            self._starts[tier.history] = PrefixIndex()
        self._known: dict[tuple[int, bytes], Held] = {}

    def free(self) -> dict[int, int]:
        """How many states of each profile length can be taken now; those that are kept can be, too."""
        return {history: len(states) + len(self._kept[history]) for history, states in self._free.items()}

    def knows(self, history: int, fingerprint: bytes) -> bool:
        """Whether `find` would find something."""
        return (history, fingerprint) in self._known

    def find(self, history: int, fingerprint: bytes) -> Held | None:
        """The state of this history for one more holder, if there is one; it may not be `ready` yet."""
        held = self._known.get((history, fingerprint))
        if held is not None:
            if not held.holders:
                self._release(held)
            held.holders += 1
        return held

    def prefix(self, history: int, prefixes: Sequence[bytes]) -> int:
        """How many of the oldest events of a history with these prefixes `take` would find encoded."""
        return self._tile * self._starts[history].longest(prefixes)[1]

    def take(self, history: int, fingerprint: bytes, prefixes: Sequence[bytes] = ()) -> Held:
        """A state for one holder who encodes into it; what was used longest ago makes room.

        Where a state that nobody holds has the oldest events of this history, it is that one: its own history, which
        has most likely been appended to, is found no more. Others find the new one from now on, unless they find
        another with the same history.
        """
        grown, count = self._starts[history].longest(prefixes)
        if grown is not None:
            self._drop(grown)
        elif not self._free[history]:
            self._evict(history)
        held = Held(self._free[history].pop(), history, fingerprint, prefixes, self._tile * count)
        if self._keep and fingerprint:
            self._known.setdefault((history, fingerprint), held)
        return held

    def filled(self, held: Held) -> None:
        """The history of `held` is in it: whoever finds it may score against it."""
        held.ready = True
        self._count(held, 1)

    def forget(self, held: Held) -> None:
        """Nobody finds `held` any more; who holds it, goes on."""
        if self._findable(held):
            self._count(held, -1)
            del self._known[held.history, held.fingerprint]

    def give(self, held: Held) -> None:
        """One holder less. The last one leaves it among those kept, if others can find it and its history is in it."""
        held.holders -= 1
        if held.holders:
            return
        if held.ready and self._findable(held):
            kept = self._kept[held.history]
            kept[held.fingerprint] = held
            self._starts[held.history].add(held, held.prefixes)
            if len(kept) > self._keep:
                self._evict(held.history)
        else:
            self.forget(held)
            if not held.lost:
                self._free[held.history].append(held.state)

    def lose(self, held: Held) -> None:
        """`held` never comes back, as a launch that was given up may still touch it; its holders go on with it."""
        held.lost = True
        self.forget(held)

    def replace(self, history: int, state: HistoryState) -> None:
        """Takes a new state in place of one that was lost."""
        self._free[history].append(state)

    def clear(self) -> None:
        """Forgets every history; states in use go back when their holders give them."""
        for kept in self._kept.values():
            for held in list(kept.values()):
                self._drop(held)
        for held in list(self._known.values()):
            self.forget(held)

    def _evict(self, history: int) -> None:
        self._drop(next(iter(self._kept[history].values())))
        self._metrics.state_evictions.inc()

    def _drop(self, held: Held) -> None:
        """Makes a kept state a free one, the next to be taken."""
        self._release(held)
        self.forget(held)
        self._free[held.history].append(held.state)

    def _release(self, held: Held) -> None:
        """Takes a kept state out of those that may be evicted or appended to."""
        del self._kept[held.history][held.fingerprint]
        self._starts[held.history].remove(held, held.prefixes)

    def _findable(self, held: Held) -> bool:
        return self._known.get((held.history, held.fingerprint)) is held

    def _count(self, held: Held, sign: int) -> None:
        if held.ready and self._findable(held):
            self._metrics.states_held.inc(sign)
            self._metrics.state_bytes.inc(sign * held.state.nbytes)
