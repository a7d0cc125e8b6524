"""What must hold of a history wherever it comes from, and how one is cut."""

from __future__ import annotations

import numpy as np

from flame.records import History


def check_types(history: History) -> None:
    """Raises `ValueError` that names the column unless all three are int64 `[n]`."""
    for name in ("items", "actions", "timestamps"):
        column = getattr(history, name)
        if not isinstance(column, np.ndarray) or column.dtype != np.int64 or column.ndim != 1:
            raise ValueError(f"{name} must be int64 of shape [events], got {describe(column)}")


def check_values(history: History, actions: int) -> None:
    """Raises `ValueError` that names the place and the value unless the columns make a history.

    They must have one length, actions must lie in `[0, actions)`, timestamps be neither negative nor decreasing.
    """
    lengths = (len(history.items), len(history.actions), len(history.timestamps))
    if len(set(lengths)) != 1:
        raise ValueError("items, actions and timestamps must have one length, got {}, {} and {}".format(*lengths))
    if not lengths[0]:
        return
    if history.actions.min() < 0 or history.actions.max() >= actions:
        wrong = int(np.flatnonzero((history.actions < 0) | (history.actions >= actions))[0])
        raise ValueError(f"action {history.actions[wrong]} of event {wrong} is outside [0, {actions})")
    if history.timestamps[0] < 0:
        raise ValueError(f"timestamp {history.timestamps[0]} of event 0 is negative")
    earlier, later = history.timestamps[:-1], history.timestamps[1:]
    if (later < earlier).any():
        wrong = int(np.flatnonzero(later < earlier)[0])
        raise ValueError(
            f"timestamps must not decrease: event {wrong + 1} has {later[wrong]} after {earlier[wrong]}; "
            "sort the events, oldest first"
        )


def newest(history: History, events: int) -> History:
    """The newest `events` events, without a copy."""
    extra = len(history.items) - events
    if extra <= 0:
        return history
    return History(history.items[extra:], history.actions[extra:], history.timestamps[extra:])


def describe(value: object) -> str:
    """Dtype and shape of an array, the type of anything else; for error messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {list(value.shape)}"
    return type(value).__name__
