"""Whose turn it is: plain cases by hand, and the two rules under any traffic."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.orchestrator.queue import BATCH_SHARE, RequestQueue
from flame.orchestrator.ticket import Ticket
from flame.records import Features
from tests.orchestrator.asking import nobody

Make = Callable[..., Ticket]

ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def ticket(features: Callable[..., Features]) -> Make:
    any_features = features(1, 1)

    def make(user: int = 0, priority: Any = "interactive", cost: float = 1.0, deadline: float | None = None) -> Ticket:
        made = Ticket(any_features, nobody, tasks=2, submitted=0.0, deadline=deadline, user=user, priority=priority)
        made.cost_ms = cost
        return made

    return make


def drained(queue: RequestQueue) -> list[Ticket]:
    return [queue.pop() for _ in range(len(queue))]


def filled(tickets: list[Ticket]) -> RequestQueue:
    queue = RequestQueue()
    for one in tickets:
        queue.push(one)
    return queue


@pytest.mark.parametrize("users", [[7] * 50, range(50)], ids=["one user", "one request each"])
def test_without_anybody_to_be_fair_to_requests_are_served_as_they_came(ticket: Make, users: Any) -> None:
    tickets = [ticket(user) for user in users]
    assert drained(filled(tickets)) == tickets


def test_users_take_turns(ticket: Make) -> None:
    greedy = [ticket(1) for _ in range(4)]
    modest, late = ticket(2), ticket(3)
    queue = filled([*greedy, modest])
    assert queue.pop() is greedy[0]
    queue.push(late)
    assert drained(queue) == [modest, greedy[1], late, greedy[2], greedy[3]]


def test_interactive_requests_go_first(ticket: Make) -> None:
    batch, interactive = [ticket(n, "batch") for n in range(3)], [ticket(n) for n in range(3)]
    assert drained(filled(batch + interactive)) == interactive + batch


def test_batch_requests_have_their_share(ticket: Make) -> None:
    queue = filled([ticket(1, "batch") for _ in range(3)] + [ticket(2) for _ in range(100)])
    order = [one.priority for one in drained(queue)]
    assert [place for place, priority in enumerate(order) if priority == "batch"] == [20, 41, 62]


def test_what_is_put_back_comes_next_in_its_order(ticket: Make) -> None:
    tickets = [ticket(user) for user in (1, 1, 2, 1, 3, 2)]
    queue, same = filled(tickets), drained(filled(tickets))
    taken = [queue.pop() for _ in range(4)]
    queue.put_back(taken[1:])
    queue.push(late := ticket(2))
    assert drained(queue) == [*same[1:], late]


def test_a_batch_request_put_back_does_not_overtake_interactive_ones(ticket: Make) -> None:
    batch = [ticket(1, "batch") for _ in range(2)]
    queue = filled(batch)
    queue.put_back([queue.pop(), queue.pop()])
    queue.push(interactive := ticket(2))
    assert drained(queue) == [interactive, *batch]


def test_late_requests_leave_from_anywhere(ticket: Make) -> None:
    tickets = [ticket(number % 3, deadline=None if number % 5 == 0 else float(number)) for number in range(20)]
    queue = filled(tickets)
    taken = queue.pop()
    late = queue.pop_late(10.0)
    assert late == [one for one in tickets[:11] if one.deadline is not None and one is not taken]
    assert queue.pop_late(10.0) == []
    assert sorted(map(tickets.index, drained(queue))) == [5, 10, *range(11, 20)]
    assert queue.pop_late(1e9) == []


def test_nothing_is_kept_of_requests_that_have_left(ticket: Make) -> None:
    queue = RequestQueue()
    for number in range(10_000):
        queue.push(one := ticket(number, deadline=1e9 + number))
        queue.remove(one) if number % 2 else queue.pop()
        queue.remove(one)
    assert len(queue) == 0
    assert len(queue._deadlines) < 100
    assert not any(turns._users for turns in queue._turns.values())


@ANY
@given(st.data())
def test_every_request_is_there_once_until_it_leaves_once(ticket: Make, data: st.DataObject) -> None:
    queue, waiting, taken, gone = RequestQueue(), [], [], []
    for now in range(data.draw(st.integers(1, 60))):
        steps = ["push", "late"] + ["pop", "remove"] * bool(waiting) + ["back", "done"] * bool(taken)
        step = data.draw(st.sampled_from(steps))
        if step == "push":
            deadline = data.draw(st.none() | st.integers(now, now + 30).map(float))
            priority = data.draw(st.sampled_from(["interactive", "batch"]))
            waiting.append(ticket(data.draw(st.integers(0, 3)), priority, data.draw(st.integers(1, 9)), deadline))
            queue.push(waiting[-1])
        elif step == "pop":
            taken.append(queue.pop())
            waiting.remove(taken[-1])
        elif step == "remove":
            gone.append(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            queue.remove(gone[-1])
        elif step == "back":
            queue.put_back(taken)
            waiting += taken
            taken = []
        elif step == "done":
            gone.append(taken.pop())
            queue.remove(gone[-1])
        else:
            late = queue.pop_late(float(now))
            assert set(late) == {one for one in waiting if one.deadline is not None and one.deadline <= now}
            waiting = [one for one in waiting if one not in late]
        assert len(queue) == len(waiting)
        assert all(one in queue for one in waiting)
        assert not any(one in queue for one in taken + gone)
    assert set(drained(queue)) == set(waiting)


@ANY
@given(st.lists(st.integers(0, 4) | st.none(), max_size=150))
def test_nobody_waits_for_the_backlog_of_another(ticket: Make, steps: list[int | None]) -> None:
    """A request waits for one of another user's for each of its own user's up to itself, whatever comes meanwhile."""
    queue = RequestQueue()
    waiting: dict[Ticket, tuple[int, Counter[int]]] = {}
    for step in itertools.chain(steps, itertools.repeat(None, len(steps))):
        if step is not None:
            one = ticket(step)
            waiting[one] = sum(other.user == step for other in waiting) + 1, Counter()
            queue.push(one)
        elif waiting:
            served = queue.pop()
            own, overtaken_by = waiting.pop(served)
            assert all(count <= own for user, count in overtaken_by.items() if user != served.user)
            assert overtaken_by[served.user] == own - 1
            for _, seen in waiting.values():
                seen[served.user] += 1
    assert not waiting


@ANY
@given(st.lists(st.tuples(st.sampled_from(["interactive", "batch", "pop"]), st.integers(1, 30)), max_size=200))
def test_batch_gets_its_share_and_no_more_while_others_wait(ticket: Make, steps: list[tuple[str, int]]) -> None:
    queue = RequestQueue()
    interactive: list[Ticket] = []
    batch: list[Ticket] = []
    earned, spent, since, dearest = 0.0, 0.0, 0.0, max((cost for _, cost in steps), default=0)
    for kind, cost in steps + [("pop", 0)] * len(steps):
        if kind != "pop":
            one = ticket(1, kind, float(cost))
            (batch if kind == "batch" else interactive).append(one)
            queue.push(one)
        elif interactive or batch:
            served = queue.pop()
            if served.priority == "interactive":
                assert served is interactive.pop(0)
                since = since + served.cost_ms if batch else 0.0
                earned += BATCH_SHARE * served.cost_ms if batch else 0.0
                if batch:
                    assert since <= batch[0].cost_ms / BATCH_SHARE + dearest, "batch requests starve"
            else:
                assert served is batch.pop(0)
                since = 0.0
                spent += served.cost_ms if interactive else 0.0
                assert spent <= earned + 1e-9, "interactive requests wait for batch"
    assert len(queue) == 0


def test_requests_that_are_only_looked_at_earn_batch_nothing(ticket: Make) -> None:
    queue = filled([ticket(user) for user in range(10)] + [ticket(priority="batch", cost=5.0)])
    for _ in range(10):
        looked_at = [queue.pop() for _ in range(10)]
        assert all(one.priority == "interactive" for one in looked_at)
        queue.put_back(looked_at)


def test_looking_again_and_again_leaves_one_deadline_of_each(ticket: Make) -> None:
    queue = filled([ticket(user, deadline=1e9 + user) for user in range(100)])
    for _ in range(20):
        queue.put_back([queue.pop() for _ in range(100)])
    assert len(queue._deadlines) <= 2 * len(queue) + 64
