"""Two ways to the same results, timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """What `work` took, and what it gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float, float, Any, Any]:
    """Median seconds of each, the median of theirs / ours over the pairs, and both results. Each goes first in every other
    pair."""
    pairs = []
    for k in range(repeats):
        if k % 2:
            (b, other), (a, own) = seconds(theirs), seconds(ours)
        else:
            (a, own), (b, other) = seconds(ours), seconds(theirs)
        pairs.append((a, b))
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(b / a for a, b in pairs), own, other
