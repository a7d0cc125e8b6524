"""What is written down of a run, compared with counting it; and requests that are each their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.bench.load.client import OK
from flame.bench.load.record import Window
from flame.bench.orchestrator.record import Record
from flame.bench.orchestrator.sender import own_microseconds
from flame.bench.orchestrator.traffic import Traffic
from flame.orchestrator.outcome import Scored

FATES = st.sampled_from(["refused", "dropped", "scored", "reused", "on its way"])
WINDOW, DEADLINE_MS = Window(3.0, 12.0), 4000.0


@given(st.lists(st.tuples(FATES, st.integers(0, 9)), max_size=30))
def test_rows_and_shares_are_those_of_what_was_written(fates: list[tuple[str, int]]) -> None:
    record, expected = Record(30), []
    for index, (fate, took) in enumerate(fates):
        due, done, queue_us = 0.5 * index, 0.5 * index + took, 10.0 * took
        record.sending(index, due, due + 0.25, index + 1)
        if fate != "refused":
            record.admitted(index)
        if fate in ("refused", "dropped"):
            record.failed(index, done, "queue_full")
        elif fate != "on its way":
            record.scored(index, done, Scored(np.zeros((1, 1), np.float32), queue_us, 7.0, 1, fate == "reused"))
        kind = {"scored": OK, "reused": OK, "on its way": "timeout"}.get(fate, "queue_full")
        stages = (queue_us, 7.0) if kind == OK else (math.nan, math.nan)
        expected.append((due, due + 0.25, math.nan if kind == "timeout" else done, index + 1, kind, *stages))
    found = [
        (one.due, one.sent, one.done, one.candidates, one.reply.outcome, *one.reply.stages.values())
        for one in record.outcomes()
    ]
    assert repr(found) == repr(expected)
    due = [(fate, took) for index, (fate, took) in enumerate(fates) if 3.0 <= 0.5 * index < 12.0]
    answered = [fate == "reused" for fate, _ in due if fate in ("scored", "reused")]
    assert record.reuse_share(WINDOW) == (sum(answered) / len(answered) if answered else None)
    assert record.refusals_ms(WINDOW).tolist() == [1e3 * (took - 0.25) for fate, took in due if fate == "refused"]
    in_time = [fate in ("scored", "reused") and took <= 4 for fate, took in due if fate != "refused"]
    assert record.in_time_share(WINDOW, DEADLINE_MS) == (
        pytest.approx(sum(in_time) / len(in_time)) if in_time else None
    )


def test_a_record_without_room_is_empty() -> None:
    record = Record(0)
    assert len(record) == len(record.outcomes()) == len(record.refusals_ms(WINDOW)) == 0
    assert record.in_time_share(WINDOW, DEADLINE_MS) is record.reuse_share(WINDOW) is None


def test_every_submission_is_a_request_of_its_own(traffic: Traffic) -> None:
    users = [5, 2**32, 5, 6]
    requests = [traffic.request(index, user, float(index)) for index, user in enumerate(users)]
    features = [traffic.features(index, user) for index, user in enumerate(users)]
    assert [one.user for one in requests] == users
    assert [one.deadline for one in requests] == [0.0, 1.0, 2.0, 3.0]
    assert (
        [len(one.candidates) for one in requests] == [one.layout.candidates for one in features] == traffic.counts[:4]
    )
    assert len({id(one) for one in requests + features}) == 8
    fingerprints = [one.fingerprint for one in features]
    assert fingerprints[0] == fingerprints[2]
    assert len(set(fingerprints)) == 3


def test_the_generator_has_a_cost(traffic: Traffic) -> None:
    assert own_microseconds(traffic) > 0
