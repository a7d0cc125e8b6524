"""Which way of a launch is taken, and that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flame.engine import artifact, measuring
from flame.engine.backends.base import Engine
from flame.engine.measuring import Place, fastest_ways, measure
from flame.engine.spec import Profile, ProfileCost
from flame.errors import ExecutionError

SMALL, LARGE = Profile(1, 8, 4), Profile(2, 64, 32)
IDENTITY = {"model": "m"}
COSTS = {"a": 1.0, "b": 0.98, "c": 0.5}


class Ways(SimpleNamespace):
    """What measuring sees of an engine: ways, what was taken of them, and times that follow from it."""

    profiles = (SMALL, LARGE)

    def __init__(self, ways: Mapping[str, Sequence[str]]) -> None:
        super().__init__(known=ways, taken={}, measured=[], costs={})

    def ways(self, profile: Profile) -> Mapping[str, Sequence[str]]:
        return self.known

    def take(self, profile: Profile, kind: str, way: str) -> None:
        self.taken[profile, kind] = way

    def cost(self, profile: Profile) -> ProfileCost:
        self.measured.append(profile)
        if "broken" in self.taken.values():
            raise ExecutionError("too much shared memory")
        kinds = ("rank", "encode", "score")
        return ProfileCost(*(COSTS.get(self.taken.get((profile, kind), ""), 7.0) for kind in kinds))


@pytest.fixture(autouse=True)
def no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure_cost", lambda engine, profile: engine.cost(profile))


@pytest.mark.parametrize(
    ("ways", "best"),
    [
        ({}, {}),
        ({"rank": ("a", "b", "c")}, {"rank": "c"}),
        ({"rank": ("a", "b")}, {"rank": "a"}),
        ({"rank": ("c", "a"), "score": ("b", "a", "c")}, {"rank": "c", "score": "c"}),
    ],
)
def test_the_fastest_is_taken_where_it_is_worth_it(ways: Mapping[str, Sequence[str]], best: dict[str, str]) -> None:
    engine = Ways(ways)
    assert fastest_ways(as_engine(engine), LARGE) == best
    assert len(engine.measured) == max(map(len, ways.values()), default=0)


def test_a_way_that_fails_is_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert fastest_ways(as_engine(Ways({"rank": ("a", "broken", "c")})), LARGE) == {"rank": "c"}
    assert "profile 2x64+32 does not run by {'rank': 'broken'}: too much shared memory" in caplog.messages
    with pytest.raises(ExecutionError, match="too much shared memory"):
        fastest_ways(as_engine(Ways({"rank": ("broken", "a")})), LARGE)


def measured(folder: Path, engine: Ways, threads: int = 1) -> Ways:
    found = artifact.read(folder, IDENTITY)
    assert found is not None
    measure(as_engine(engine), found, Place(folder, IDENTITY, threads), lambda *_: None)
    return engine


def as_engine(engine: Ways) -> Engine:
    return engine  # type: ignore[return-value]


def test_a_second_start_takes_what_the_first_found(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    artifact.write(tmp_path, IDENTITY, tmp_path / "built")
    first = measured(tmp_path, Ways({"rank": ("a", "c")}))
    assert first.measured == [LARGE] * 3 + [SMALL] * 3
    assert first.taken == {(SMALL, "rank"): "c", (LARGE, "rank"): "c"}
    assert first.costs == {SMALL: ProfileCost(0.5, 7.0, 7.0), LARGE: ProfileCost(0.5, 7.0, 7.0)}
    second = measured(tmp_path, Ways({"rank": ("a", "c")}))
    assert (second.measured, second.taken, second.costs) == ([], first.taken, first.costs)
    other = measured(tmp_path, Ways({"rank": ("a", "c")}), threads=2)
    assert other.measured == [LARGE, SMALL], "the ways are known, the costs are not"


def test_engines_without_a_choice_leave_no_ways(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    artifact.write(tmp_path, IDENTITY, tmp_path / "built")
    measured(tmp_path, Ways({}))
    found = artifact.read(tmp_path, IDENTITY)
    assert found is not None
    assert found.ways == {}
    assert found.costs_of((SMALL,), 1) == {SMALL: ProfileCost(7.0, 7.0, 7.0)}
