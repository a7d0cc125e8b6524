"""The temporal split: one point of time parts training from evaluation, and a cut parts each evaluated user.

Training sees the events before `boundary` and nothing else. A user who is active after it is evaluated on the later
half of their events: what lies before the cut is their history, what lies after it is what the model must find. Most
people of MovieLens-100K rate everything within an hour, so most evaluated users are unknown to training; they are
ranked by their history alone. Events of one second share their timestamp and are never parted by a cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flame.examples.movielens.dataset import Events, Ints
from flame.records import History

TRAINING_SHARE = 0.8
MIN_HISTORY = 5
MIN_LATER = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluated user: the history until the cut, and the events after it."""

    user: int
    history: History
    later: Events


def boundary(events: Events, share: float = TRAINING_SHARE) -> int:
    """The timestamp before which `share` of all events lie; the first one that is not training any more."""
    return int(events.timestamps[int(share * len(events))])


def training(events: Events, until: int) -> Events:
    """The events of the training period."""
    return events.take(events.timestamps < until)


def by_user(events: Events) -> dict[int, Events]:
    """Each user's events in the order of time, keyed by user id in ascending order."""
    order = np.argsort(events.users, kind="stable")
    users, starts = np.unique(events.users[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {int(user): events.take(part) for user, part in zip(users, parts, strict=True)}


def next_cut(timestamps: Ints, position: int) -> int:
    """The first position from `position` on that does not part events of one second; the length where there is none."""
    while 0 < position < len(timestamps) and timestamps[position - 1] == timestamps[position]:
        position += 1
    return position


def history(events: Events, end: int) -> History:
    """One user's first `end` events as FLAME reads them: the action of an event is its rating, 1 to 5."""
    return History(events.items[:end], events.ratings[:end], events.timestamps[:end])


def cases(events: Events, until: int) -> list[Case]:
    """The evaluated users, in ascending order of id."""
    found = []
    for user, own in by_user(events).items():
        cut = _cut(own, until)
        if cut is not None:
            found.append(Case(user, history(own, cut), own.take(slice(cut, None))))
    return found


def histories(events: Events, until: int) -> dict[int, History]:
    """What a feature store knows of each user: until the cut of evaluated users, until `until` of all others."""
    found = {}
    for user, own in by_user(events).items():
        cut = _cut(own, until)
        end = int(np.searchsorted(own.timestamps, until)) if cut is None else cut
        if end:
            found[user] = history(own, end)
    return found


def _cut(own: Events, until: int) -> int | None:
    """Where the history of one user ends, or None for a user with too few events on either side of the cut."""
    before = int(np.searchsorted(own.timestamps, until))
    cut = next_cut(own.timestamps, max(before, len(own) // 2))
    return cut if cut >= MIN_HISTORY and len(own) - cut >= MIN_LATER else None
