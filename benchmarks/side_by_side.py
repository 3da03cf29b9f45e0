"""Time two implementations of the same computation alternately."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds and the result of `work`."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float, float, Any, Any]:
    """Return both median times, the median of the ratios theirs / ours, and both results. The order alternates."""
    pairs = []
    for k in range(repeats):
        if k % 2:
            (b, other), (a, own) = seconds(theirs), seconds(ours)
        else:
            (a, own), (b, other) = seconds(ours), seconds(theirs)
        pairs.append((a, b))
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs), own, other
