"""Hand-overs of the lock: flags are seen as long as they are up, and the interval becomes shorter only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from flame import handover
from flame.handover import Flag, give_way, shorten_interval
from flame.jit import Integer, kernel


@kernel
def raise_flag(flags: NDArray[np.uint8], place: Integer) -> None:
    flags[place] = 1


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every time that a thread gives way."""
    given: list[int] = []
    monkeypatch.setattr(os, "sched_yield", lambda: given.append(1))
    return given


@pytest.fixture(autouse=True)
def flags_down() -> Iterator[None]:
    yield
    assert 1 not in handover._FLAGS


def test_who_waits_is_let_go_first_as_long_as_they_wait(yields: list[int]) -> None:
    flag = Flag()
    give_way()
    assert not yields
    raise_flag(flag.flags, flag.place)
    give_way()
    give_way()
    assert len(yields) == 2
    flag.lower()
    give_way()
    assert len(yields) == 2


def test_the_flag_of_one_is_not_lowered_by_another(yields: list[int]) -> None:
    first, second = Flag(), Flag()
    raise_flag(first.flags, first.place)
    raise_flag(second.flags, second.place)
    first.lower()
    give_way()
    assert yields
    second.lower()


def test_there_may_be_more_than_there_is_room_for(yields: list[int]) -> None:
    many = [Flag() for _ in range(2 * len(handover._FLAGS))]
    for flag in many:
        raise_flag(flag.flags, flag.place)
        give_way()
        flag.lower()
    assert len(yields) == len(many)


def test_the_interval_is_shortened_and_never_lengthened() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        shorten_interval()
        assert sys.getswitchinterval() == pytest.approx(0.001, abs=1e-5)
        sys.setswitchinterval(0.0002)
        shorten_interval()
        assert sys.getswitchinterval() == pytest.approx(0.0002, abs=1e-5)
    finally:
        sys.setswitchinterval(before)
