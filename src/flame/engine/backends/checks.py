"""What every engine asks of a launch before it runs."""

from __future__ import annotations

from typing import TypeVar

from flame.engine.spec import Profile
from flame.errors import InvalidLaunch

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
