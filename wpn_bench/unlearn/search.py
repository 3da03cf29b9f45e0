"""Search ranges for the options of a method that are tuned.

A *relative* range contains factors. The factor is applied to the value that the option has without tuning. For
instance, `Log(1 / 3, 3, relative=True)` for `lr` means a third to three times the method's own learning rate, which
depends on the model. A *drawn* point contains a factor for each relative range and a value for each other range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_TIMES = " times its own"
DIGITS = 3  # significant digits of a drawn number, which are enough for tuning and can all be printed in reports


@dataclass(frozen=True)
class Log:
    """A range that is uniform in the logarithm between `low` and `high`, both above 0."""

    low: float
    high: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"a logarithmic range needs 0 < low < high, not {self.low} and {self.high}")

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}{_TIMES * self.relative}, by its logarithm"

    def __contains__(self, value: object) -> bool:
        return _between(self.low, value, self.high)


@dataclass(frozen=True)
class Float:
    """A range that is uniform between `low` and `high`."""

    low: float
    high: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.relative and self.low <= 0):
            raise ValueError(f"a range needs low < high (relative: above 0), not {self.low} and {self.high}")

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}{_TIMES * self.relative}"

    def __contains__(self, value: object) -> bool:
        return _between(self.low, value, self.high)


@dataclass(frozen=True)
class Choice:
    """One of `options`, all equally likely."""

    options: tuple[bool | int | float | str | None, ...]
    relative: bool = False

    def __post_init__(self) -> None:
        if not self.options or len(set(self.options)) != len(self.options):
            raise ValueError(f"a choice needs options, each once, not {self.options}")
        if self.relative and not all(_between(0, o, math.inf) and o for o in self.options):
            raise ValueError(f"multiples are numbers above 0, not {self.options}")

    def __str__(self) -> str:
        return f"{' or '.join(map(str, self.options))}{_TIMES * self.relative}"

    def __contains__(self, value: object) -> bool:
        return value in self.options


Range = Log | Float | Choice
Drawn = dict[str, Any]


def _between(low: float, value: object, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def rounded(value: float) -> float:
    """Round to `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")
