"""What is ahead where users take turns, compared with counting it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.orchestrator.crowd import Crowd
from flame.orchestrator.rounds import Rounds


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=80))
def test_what_is_ahead_is_the_rounds_up_to_the_next_of_the_user(steps: list[tuple[bool, int]]) -> None:
    rounds, held = Rounds(), dict.fromkeys(range(5), 0)
    for enters, user in steps:
        if enters:
            rounds.enter(user)
            held[user] += 1
        elif held[user]:
            rounds.leave(user)
            held[user] -= 1
        total = sum(held.values())
        assert rounds.total == total
        for one, own in held.items():
            assert rounds.held(one) == own
            ahead = sum(min(other, own + 1) for other in held.values())
            assert rounds.ahead(one) == pytest.approx(ahead / total if total else 0.0)
    assert set(rounds._held) == {user for user, own in held.items() if own}
    assert len(rounds._rounds) == max(held.values())


@given(st.lists(st.sampled_from(["interactive", "batch"]), max_size=60), st.integers(1, 10))
def test_a_full_crowd_lets_interactive_ones_in_as_if_there_were_no_batch(coming: list[str], limit: int) -> None:
    crowd, interactive = Crowd(), 0
    for priority in coming:
        if crowd.before(priority) < limit:
            crowd.add(priority)
            interactive += priority == "interactive"
        assert crowd.total <= 2 * limit
    assert interactive == min(limit, coming.count("interactive"))
