"""The temporal split: nothing that is evaluated was ever seen."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flame.examples.movielens import split
from flame.examples.movielens.dataset import Events


@st.composite
def event_lists(draw: st.DrawFn) -> Events:
    count = draw(st.integers(2, 120))
    column = st.lists(st.integers(0, 40), min_size=count, max_size=count)
    users = np.array(draw(st.lists(st.integers(1, 4), min_size=count, max_size=count)), np.int64)
    items = np.arange(count, dtype=np.int64)
    return Events(users, items, items % 5 + 1, np.sort(np.array(draw(column), np.int64)))


@given(event_lists(), st.floats(0.1, 0.9))
def test_training_and_later_events_never_meet(events: Events, share: float) -> None:
    until = split.boundary(events, share)
    trained = split.training(events, until)
    assert (trained.timestamps < until).all()
    for case in split.cases(events, until):
        assert case.later.timestamps.min() >= until
        assert not set(case.later.items) & set(trained.items)


@given(event_lists(), st.floats(0.1, 0.9))
def test_a_history_ends_before_what_is_evaluated(events: Events, share: float) -> None:
    until = split.boundary(events, share)
    own = split.by_user(events)
    for case in split.cases(events, until):
        assert case.history.timestamps.max() < case.later.timestamps.min()
        assert len(case.history.items) >= split.MIN_HISTORY
        assert len(case.later) >= split.MIN_LATER
        both = np.concatenate([case.history.items, case.later.items])
        np.testing.assert_array_equal(both, own[case.user].items)


@given(event_lists(), st.floats(0.1, 0.9))
def test_the_store_knows_no_event_after_the_boundary_but_histories_of_evaluated_users(
    events: Events, share: float
) -> None:
    until = split.boundary(events, share)
    evaluated = {case.user: case.history for case in split.cases(events, until)}
    for user, history in split.histories(events, until).items():
        if user in evaluated:
            np.testing.assert_array_equal(history.items, evaluated[user].items)
        else:
            assert (history.timestamps < until).all()


@given(event_lists())
def test_users_together_hold_every_event_once_in_order(events: Events) -> None:
    parts = split.by_user(events)
    assert sorted(np.concatenate([part.items for part in parts.values()])) == events.items.tolist()
    for user, part in parts.items():
        assert set(part.users) == {user}
        assert (np.diff(part.items) > 0).all()


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 20))
def test_a_cut_never_parts_one_second(times: list[int], position: int) -> None:
    timestamps = np.sort(np.array(times, np.int64))
    position = min(position, len(timestamps))
    cut = split.next_cut(timestamps, position)
    assert cut >= position
    assert cut in (0, len(timestamps)) or timestamps[cut - 1] < timestamps[cut]
