"""The pool of encoded histories against a plain model of it, step by step; and how often histories come again."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flame.engine.spec import ClimberConfig, ModelSpec, Profile, Task
from flame.metrics import Metrics
from flame.orchestrator.profiles import ProfileSet
from flame.orchestrator.recurrence import Recurrence
from flame.orchestrator.states import Held, StatePool
from flame.schema import InputSchema, ItemTable
from tests.orchestrator.conftest import HashEngine, costs

LENGTHS = (8, 30)
TILE = 4
EXECUTORS, WIDEST, KEEP = 2, 2, 3
TOTAL = EXECUTORS * WIDEST + KEEP
SCHEMA = InputSchema(ItemTable(9, 4), max_history=30, max_candidates=16, actions=2)
SPEC = ModelSpec("m", "1", (Task("t"),), SCHEMA, climber=ClimberConfig(4, 1, 1, 4))
PROFILES = [Profile(WIDEST, history, 16) for history in LENGTHS]

lengths = st.sampled_from(LENGTHS)
fingerprints = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"])
beginnings = st.sampled_from([(), (b"1",), (b"1", b"12"), (b"1", b"12", b"123"), (b"1", b"13"), (b"2", b"24")])
"""Prefixes of histories; those that begin alike are prefixes of one history."""


def common(left: tuple[bytes, ...], right: tuple[bytes, ...]) -> int:
    """How many prefixes two histories share."""
    return sum(one == other for one, other in zip(left, right, strict=False))


class Pool(RuleBasedStateMachine):
    """Every holder is one entry of `holders`; `kept` is what the pool should keep, least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()
        engine = HashEngine(SPEC, PROFILES, costs(PROFILES))
        engine.append_tile = TILE
        self.pool = StatePool(engine, ProfileSet(SPEC, PROFILES, engine.costs), EXECUTORS, KEEP, self.metrics)
        self.holders: list[Held] = []
        self.known: dict[tuple[int, bytes], Held] = {}
        self.kept: dict[int, list[Held]] = {history: [] for history in LENGTHS}
        self.evicted = 0

    def in_use(self, history: int) -> set[Held]:
        return {held for held in self.holders if held.history == history}

    @rule(history=lengths, fingerprint=fingerprints)
    def find(self, history: int, fingerprint: bytes) -> None:
        held = self.pool.find(history, fingerprint)
        assert held is self.known.get((history, fingerprint))
        if held:
            self.holders.append(held)
            self.kept[history] = [other for other in self.kept[history] if other is not held]

    @rule(history=lengths, fingerprint=st.one_of(fingerprints, st.just(b"")), prefixes=beginnings)
    def take(self, history: int, fingerprint: bytes, prefixes: tuple[bytes, ...]) -> None:
        if not self.pool.free()[history]:
            return
        full = len(self.in_use(history)) + len(self.kept[history]) == TOTAL
        most = max((common(held.prefixes, prefixes) for held in self.kept[history]), default=0)
        assert self.pool.prefix(history, prefixes) == TILE * most
        held = self.pool.take(history, fingerprint, prefixes)
        assert held.prefix == TILE * most
        if most:
            (grown,) = (other for other in self.kept[history] if other.state is held.state)
            assert common(grown.prefixes, prefixes) == most
            self.kept[history].remove(grown)
            del self.known[history, grown.fingerprint]
        elif full:
            oldest = self.kept[history].pop(0)
            del self.known[history, oldest.fingerprint]
            self.evicted += 1
            assert held.state is oldest.state
        assert not held.ready
        others = [*self.holders, *self.kept[8], *self.kept[30]]
        assert all(other.state is not held.state for other in others), "a state that somebody reads is written again"
        if fingerprint:
            self.known.setdefault((history, fingerprint), held)
        self.holders.append(held)

    @precondition(lambda self: any(not held.ready for held in self.holders))
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from([held for held in self.holders if not held.ready]))
        self.pool.filled(held)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.holders))
        self.pool.forget(held)
        self.drop(held)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        held = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.give(held)
        if held in self.holders:
            return
        if not held.ready:
            self.drop(held)
        elif self.known.get((held.history, held.fingerprint)) is held:
            self.kept[held.history].append(held)
            if len(self.kept[held.history]) > KEEP:
                oldest = self.kept[held.history].pop(0)
                del self.known[held.history, oldest.fingerprint]
                self.evicted += 1

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        self.known.clear()
        for kept in self.kept.values():
            kept.clear()

    def drop(self, held: Held) -> None:
        if self.known.get((held.history, held.fingerprint)) is held:
            del self.known[held.history, held.fingerprint]

    @invariant()
    def no_state_is_lost(self) -> None:
        assert self.pool.free() == {history: TOTAL - len(self.in_use(history)) for history in LENGTHS}

    @invariant()
    def metrics_tell_what_is_held(self) -> None:
        value = self.metrics.registry.get_sample_value
        found = sum(held.ready for held in self.known.values())
        assert value("flame_states_held") == found
        assert value("flame_state_bytes") == 8 * found
        assert value("flame_state_evictions_total") == self.evicted


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_pool_that_keeps_nothing_finds_nothing() -> None:
    engine = HashEngine(SPEC, PROFILES, costs(PROFILES))
    pool = StatePool(engine, ProfileSet(SPEC, PROFILES, engine.costs), 1, 0, Metrics())
    held = pool.take(8, b"a")
    pool.filled(held)
    assert pool.find(8, b"a") is None
    pool.give(held)
    assert pool.find(8, b"a") is None


def test_a_history_that_grew_is_the_same_one_again() -> None:
    recurrence = Recurrence(2)
    for events in range(400):
        recurrence.add(events.to_bytes(4, "little"), [bytes([tile]) for tile in range(events // 40)])
    assert recurrence.share == pytest.approx(1.0, abs=0.1)
    recurrence = Recurrence(2)
    for number in range(400):
        recurrence.add(number.to_bytes(4, "little"), [number.to_bytes(4, "little")])
    assert recurrence.share == pytest.approx(0.0, abs=0.01)


def share(span: int, histories: list[int]) -> float:
    recurrence = Recurrence(span)
    for history in histories:
        recurrence.add(history.to_bytes(4, "little"))
    return recurrence.share


def test_the_share_of_histories_that_come_again_is_learned() -> None:
    assert share(4, list(range(400))) == pytest.approx(0.0, abs=0.01)
    assert share(4, [1, 2, 3, 4] * 100) == pytest.approx(1.0, abs=0.01)
    assert share(3, [1, 2, 3, 4] * 100) == pytest.approx(0.0, abs=0.01), "each has just been forgotten"
    assert share(4, [number // 2 for number in range(800)]) == pytest.approx(0.5, abs=0.02)
