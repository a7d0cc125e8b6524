"""What predictions turned out to be worth, learned from lately. Not thread-safe: whoever owns it guards it."""

from __future__ import annotations

from collections import deque

_WEIGHT = 0.02
"""Weight of the newest observation in an average: what fifty of them say outweighs what came before."""

_RARE_S = 1.0
"""The time between two that come, before there is any experience."""

_BLOCK = 256
_BLOCKS = 16
_SAFE = 0.99


class Mean:
    """A mean in which the newest counts most; a first guess as long as nothing was observed."""

    __slots__ = ("value",)

    def __init__(self, first_guess: float = 0.0) -> None:
        self.value = first_guess

    def add(self, value: float) -> None:
        """Takes in one observation."""
        self.value += _WEIGHT * (value - self.value)


class Ratio:
    """What a predicted millisecond is on average: of sums, so that long predictions count for more than short ones.

    1 as long as nothing was observed. Its means are numbers and no `Mean`s: every request adds to several ratios.
    """

    __slots__ = ("_actual", "_predicted", "value")

    def __init__(self) -> None:
        self.value = 1.0
        self._predicted = 0.0
        self._actual = 0.0

    def add(self, predicted: float, actual: float) -> None:
        """Takes in one prediction, which must be above 0, and what became of it."""
        self._predicted += _WEIGHT * (predicted - self._predicted)
        self._actual += _WEIGHT * (actual - self._actual)
        if self._predicted:
            self.value = self._actual / self._predicted


class Rate:
    """How much comes in a second, and how much of a part of it: the mean of what comes by the mean of the time between.

    Starts with next to nothing: some fifty that come make it a rate, and not two that happen to come together.
    """

    __slots__ = ("_amount", "_gap", "_last", "_part")

    def __init__(self) -> None:
        self._amount = 0.0
        self._part = 0.0
        self._gap = _RARE_S
        self._last: float | None = None

    def add(self, amount: float, now: float, part: float = 0.0) -> None:
        """Takes in what comes now, in seconds of any clock, and how much of it is of the part."""
        self._amount += _WEIGHT * (amount - self._amount)
        self._part += _WEIGHT * (part - self._part)
        if self._last is not None:
            self._gap += _WEIGHT * (now - self._last - self._gap)
        self._last = now

    def value(self, now: float) -> float:
        """Less and less where nothing comes any more."""
        return self._amount / self._between(now)

    def part(self, now: float) -> float:
        """As `value`, of the part."""
        return self._part / self._between(now)

    def _between(self, now: float) -> float:
        silence = 0.0 if self._last is None else max(0.0, now - self._last - self._gap)
        return self._gap + _WEIGHT * silence


class WorstLately:
    """The value that 99 of 100 observations did not exceed, in the worst of the last 16 blocks of 256.

    Observations that follow each other are alike. One quantile of all of them would be met on the whole, and missed by
    many in each bad moment.
    """

    __slots__ = ("_block", "_blocks", "value")

    def __init__(self, first_guess: float) -> None:
        self.value = first_guess
        self._blocks = deque([first_guess], maxlen=_BLOCKS)
        self._block: list[float] = []

    def add(self, value: float) -> None:
        """Takes in one observation; O(1) but for the last of a block."""
        self._block.append(value)
        if len(self._block) == _BLOCK:
            self._block.sort()
            self._blocks.append(self._block[int(_SAFE * _BLOCK)])
            self._block.clear()
            self.value = max(self._blocks)
