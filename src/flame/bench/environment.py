"""Is this machine quiet enough to measure on? Says so loudly when it is not, or refuses.

Two looks: the load average, which remembers the last minute, and the busy share of all cores over a short pause, which
sees what runs now. Both stand in the report, so that a reader can judge a number later.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TextIO

import psutil

from flame.errors import FlameError

MOST_LOAD = 0.5
"""Load average per core above which a machine counts as busy."""
MOST_BUSY = 0.2
"""Busy share of the cores above which a machine counts as busy."""


class BusyMachine(FlameError):
    """The machine does other work, so a measurement would not mean much."""

    kind = "busy_machine"


@dataclass(frozen=True, slots=True)
class Environment:
    """What else the machine did just before the measurement."""

    load_average: float
    busy_share: float
    cores: int

    @property
    def busy(self) -> bool:
        return self.load_average > MOST_LOAD * self.cores or self.busy_share > MOST_BUSY


def observe(pause_s: float = 0.5) -> Environment:
    """Looks at the machine for `pause_s` seconds, doing nothing itself."""
    share = psutil.cpu_percent(interval=pause_s) / 100
    return Environment(round(os.getloadavg()[0], 2), round(share, 3), os.cpu_count() or 1)


def require_quiet(environment: Environment, *, strict: bool, stream: TextIO | None = None) -> None:
    """Warns on `stream` (standard error) about a busy machine; with `strict` raises `BusyMachine` instead."""
    if not environment.busy:
        return
    message = (
        f"this machine is busy: load average {environment.load_average} on {environment.cores} cores, "
        f"{environment.busy_share:.0%} of them in use before the start; times will be too long and scatter"
    )
    if strict:
        raise BusyMachine(f"{message}. Stop the other work, or measure without --strict")
    print(f"WARNING: {message.upper()}", file=stream or sys.stderr, flush=True)
