"""What every engine asks of a launch before it runs."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from flame.engine.backends.base import Engine, LaunchBuffers
from flame.engine.spec import Profile
from flame.errors import InvalidLaunch
from flame.layout import LENGTHS

Own = TypeVar("Own")

NOT_ENCODED = "nothing was encoded into this state yet"


def check_users(profile: Profile, users: int) -> None:
    """Raises `InvalidLaunch` for more users than a launch of `profile` has slots, and for none."""
    if not 1 <= users <= profile.users:
        raise InvalidLaunch(f"a launch of profile {profile} takes 1 to {profile.users} users, not {users}")


def own_buffers(buffers: object, kind: type[Own]) -> Own:
    """`buffers` as the kind that the engine makes. Raises `InvalidLaunch` for another engine's."""
    if not isinstance(buffers, kind):
        raise InvalidLaunch(f"buffers of type {type(buffers).__name__} were made by another engine")
    return buffers


def own_state(state: object, kind: type[Own]) -> Own:
    """`state` as the kind that the engine makes. Raises `InvalidLaunch` for another engine's."""
    if not isinstance(state, kind):
        raise InvalidLaunch(f"a state of type {type(state).__name__} was made by another engine")
    return state


def prefixes_of(engine: Engine, buffers: LaunchBuffers, users: int) -> list[int]:
    """How many events of each of the first `users` slots the state to be encoded into holds already.

    Raises `InvalidLaunch` for a prefix that is no multiple of the engine's tile, or longer than its history.
    """
    word = buffers.layout.record.prefix
    if word is None:
        return [0] * users
    header = buffers.layout.views(buffers.words).header[:users]
    prefixes, lengths = header[:, word], header[:, LENGTHS]
    tile = engine.append_tile
    wrong = (prefixes < 0) | (prefixes > lengths) | (np.remainder(prefixes, tile) if tile else prefixes).astype(bool)
    if wrong.any():
        user = int(wrong.argmax())
        steps = f"a multiple of {tile} within the history" if tile else "0, as this engine cannot append"
        raise InvalidLaunch(
            f"slot {user} has a prefix of {prefixes[user]} in a history of {lengths[user]} events; it must be {steps}"
        )
    found: list[int] = prefixes.tolist()
    return found


def check_prefix(prefix: int, events: int) -> None:
    """Raises `InvalidLaunch` for a prefix of which a state with so many `events` holds a part only."""
    if prefix > events:
        raise InvalidLaunch(f"a state of {events} events was given for a prefix of {prefix}")
