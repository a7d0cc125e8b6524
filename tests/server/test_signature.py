"""Named tensors to requests of one user each, and every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from flame.engine.spec import ModelSpec
from flame.errors import InvalidTensor, PackageError
from flame.records import FeatureCounts, RankResponse, StageTimes
from flame.schema import Field
from flame.server.oip import InferRequest, Values
from flame.server.signature import Signature, candidates_scored, scores_by_task

Inputs = dict[str, Values]


def inputs(users: int = 2, candidates: int = 3, events: int = 4) -> Inputs:
    return {
        "user_id": np.arange(users).reshape(users, 1) + 100,
        "candidates": np.arange(users * candidates).reshape(users, candidates),
        "history_items": np.arange(users * events).reshape(users, events) + 1000,
        "history_actions": np.ones((users, events), np.int64),
        "history_timestamps": np.arange(users * events).reshape(users, events),
        "scenario": np.full((users, 1), 2),
        "hour": np.arange(users, dtype=np.int32).reshape(users, 1),
        "battery": np.full((users, 1), 0.5, np.float32),
    }


def request(given: Inputs, outputs: tuple[str, ...] = ()) -> InferRequest:
    return InferRequest("tiny-climber", "", given, outputs, deadline=5.0, request_id="a", priority="batch")


def test_every_user_gets_a_request_of_their_own(signature: Signature) -> None:
    first, second = signature.requests(request(inputs(), ("like",)))
    assert (first.user, second.user) == (100, 101)
    assert second.candidates.tolist() == [3, 4, 5]
    assert second.history is not None
    assert second.history.items.tolist() == [1004, 1005, 1006, 1007]
    assert second.history.timestamps.tolist() == [4, 5, 6, 7]
    assert (second.scenario, second.tasks, second.deadline, second.request_id) == (2, ("like",), 5.0, "a")
    assert second.priority == "batch"
    assert second.context["hour"] == np.int32(1)
    assert np.shape(second.context["battery"]) == ()


def test_too_many_users_are_refused_before_anything_is_made_for_them(
    signature: Signature, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of 16 MiB has room for two million users: a record for each would hold up everybody else."""
    assert len(signature.requests(request(inputs()), most=2)) == 2
    monkeypatch.setattr(Signature, "_request", lambda *_: pytest.fail("a request was made"))
    with pytest.raises(InvalidTensor, match="2 users; this server takes 1"):
        signature.requests(request(inputs()), most=1)


def test_arrays_are_plain_memory_whatever_came_in(signature: Signature) -> None:
    frozen = {
        name: np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape) for name, values in inputs().items()
    }
    made = signature.requests(request(frozen))[1]
    assert made.history is not None
    for array in (made.candidates, made.history.items):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.owndata


def test_what_is_optional_may_be_absent(signature: Signature) -> None:
    few = {name: values for name, values in inputs().items() if name in ("user_id", "candidates")}
    made = signature.requests(request(few))[0]
    assert (made.history, made.scenario, dict(made.context)) == (None, 0, {})


def test_a_last_dimension_of_one_may_be_left_out(signature: Signature) -> None:
    given = inputs()
    for name in ("user_id", "scenario", "hour", "battery"):
        given[name] = given[name][:, 0]
    assert [made.user for made in signature.requests(request(given))] == [100, 101]


def test_an_empty_history_is_not_an_absent_one(signature: Signature) -> None:
    made = signature.requests(request(inputs(events=0)))[0]
    assert made.history is not None
    assert len(made.history.items) == 0


def drop(name: str) -> Callable[[Inputs], object]:
    return lambda given: given.pop(name)


def put(name: str, values: Values) -> Callable[[Inputs], object]:
    return lambda given: given.update({name: values})


ids = np.zeros((2, 3), np.int64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("user_id"), "'user_id' is missing"),
        (drop("candidates"), "'candidates' is missing"),
        (drop("history_actions"), "'history_actions' is missing"),
        (put("candidate", ids), "no input 'candidate'"),
        (put("candidates", ids.astype(np.int32)), "INT32"),
        (put("candidates", ids.astype(np.float32)), "FP32"),
        (put("candidates", ids[0]), "[3]"),
        (put("candidates", ids[None]), "[1, 2, 3]"),
        (put("candidates", ids[:1]), "for 1 users"),
        (put("user_id", ids), "[2, 3]"),
        (put("user_id", ids[:0, :1]), "[0, 1]"),
        (put("scenario", ids[:1, :1]), "for 1 users"),
        (put("history_items", ids), "'history_items': 3"),
        (put("hour", ids[:, :1]), "INT64"),
        (put("hour", ids.astype(np.int32)), "[2, 3]"),
    ],
)
def test_what_is_wrong_is_named(signature: Signature, change: Callable[[Inputs], object], said: str) -> None:
    given = inputs()
    change(given)
    with pytest.raises(InvalidTensor) as caught:
        signature.requests(request(given))
    assert said in str(caught.value)


def test_a_context_feature_cannot_have_the_name_of_an_input(spec: ModelSpec) -> None:
    context = (Field("scenario", "int32", vocabulary=3),)
    clash = msgspec.structs.replace(spec, input=msgspec.structs.replace(spec.input, context=context))
    with pytest.raises(PackageError, match="scenario"):
        Signature(clash)


def test_scores_go_to_the_task_and_the_user_they_are_of() -> None:
    scores = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    times, counts = StageTimes(0, 0, 0, 0, 0, 0), FeatureCounts()
    both = [RankResponse(own, ("like", "share"), "m", "1", "eager", counts, times, 1) for own in scores]
    outputs = scores_by_task(both)
    assert list(outputs) == ["like", "share"]
    assert outputs["share"].tolist() == [[1, 3, 5], [7, 9, 11]]


def test_a_tensor_has_as_many_candidates_as_were_scored_for_every_user() -> None:
    times, counts = StageTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0), FeatureCounts()
    rows = [np.arange(2 * size, dtype=np.float32).reshape(size, 2) for size in (5, 3, 4)]
    made = [RankResponse(row, ("like", "share"), "m", "1", "e", counts, times, 1, truncated=True) for row in rows]
    assert candidates_scored(made) == 3
    scores = scores_by_task(made)
    assert scores["share"].tolist() == [[1.0, 3.0, 5.0]] * 3
    assert scores_by_task(made[:1])["like"].tolist() == [[0.0, 2.0, 4.0, 6.0, 8.0]]
