"""Estimate benchmark scores that are no accuracies, and their paired changes.

Such a score has its own unit, such as bits per byte. It is a function of sums over documents
(`wpn_bench.benchmarks.units`): sum(s_i) / sum(w_i), or the exponential of it. Intervals are percentiles of a bootstrap over
documents. There is none for fewer than `FEWEST` documents, because it would be far too short, and none for a function of
all documents together, such as BLEU.

A change is judged relative to the other model's value: 1.05 -> 1.06 bits per byte is +1 %. The bootstrap resamples the same
documents for both models and takes the ratio of the two values. Its interval, times the other model's value, is the
interval of the change in the unit of the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.analysis.stats import LEVEL, SEED, Change, Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHOLE = "whole"
FEWEST = 10
RESAMPLES = 2_000
MOST = 345.0  # the exponential of larger numbers is not computed, see `metric_rows.MOST_LOSS`


@dataclass(frozen=True)
class Scored:
    """The documents of one task.

    Attributes:
        scores: Scores (seeds, documents).
        weights: Weights (seeds, documents).
        scale: `mean`, `log` or `whole` (see `wpn_bench.benchmarks.units`).
    """

    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    scale: str

    @property
    def n(self) -> int:
        return int(self.scores.shape[1])

    @property
    def value(self) -> float:
        """Return the score of the task, as the mean over seeds; NaN if it is no finite number."""
        import numpy as np

        return float(self._values(np.arange(self.n)[None])[0])

    def _values(self, picks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score for each resample of documents (resamples, documents)."""
        return self.by_seed(picks).mean(axis=0)

    def by_seed(self, picks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score (seeds, resamples) for each resample of documents (resamples, documents)."""
        import numpy as np

        if self.scale == WHOLE:
            return np.repeat(self.scores[:, :1], len(picks), axis=1)
        with np.errstate(all="ignore"):
            ratio = self.scores[:, picks].sum(axis=2) / self.weights[:, picks].sum(axis=2)
            ratio = np.where(np.isfinite(ratio), ratio, np.nan)
            return np.exp(np.minimum(ratio, MOST)) if self.scale == "log" else ratio


@dataclass(frozen=True)
class OwnChange(Change):
    """A paired change in the unit of the score. `relative` is the change divided by the other model's value.

    It is None if that value is not positive.
    """

    relative: Change | None


def estimate(tasks: Sequence[Scored], shares: Sequence[float]) -> Estimate:
    """Return a weighted mean of the scores of tasks, with its interval.

    Args:
        tasks: The tasks.
        shares: Weight of each task; the sum is 1.

    Returns:
        The estimate.
    """
    value = sum(share * task.value for share, task in zip(shares, tasks, strict=True))
    low, high = _interval(_draws([tasks], shares)[0] if _can_be_resampled(tasks) else None)
    return Estimate(value, low, high)


def change(old: Sequence[Scored], new: Sequence[Scored], shares: Sequence[float]) -> OwnChange:
    """Return the paired change of a weighted mean of the scores of tasks.

    With several seeds, Student's interval over the seeds is combined with the interval over documents as in
    `stats.paired_change`.

    Args:
        old: The tasks with the scores of the model that is compared with.
        new: The same tasks and documents with the scores of the other model.
        shares: Weight of each task; the sum is 1.

    Returns:
        The change. It has no p-value.
    """
    import numpy as np
    from scipy.stats import norm

    before, after = (sum(s * t.value for s, t in zip(shares, side, strict=True)) for side in (old, new))
    value, none = after - before, (None, None)
    draws = _draws([old, new], shares) if _can_be_resampled([*old, *new]) else None
    if draws is None or not math.isfinite(value):
        nothing = Change(_over(value, before), *none, None, math.nan, math.nan)
        return OwnChange(value, *none, None, math.nan, math.nan, nothing if before > 0 else None)
    positive = before > 0 and bool((draws[0] > 0).all())
    moved = draws[1] / draws[0] - 1 if positive else draws[1] - draws[0]
    unit = before if positive else 1.0
    low, high = _interval(moved)
    if low is None or high is None:
        return OwnChange(value, *none, None, math.nan, math.nan, None)
    middle, error = value / unit, float(np.nanstd(moved))
    if half := _between_seeds(old, new, shares) / unit:
        low, high = middle - math.hypot(middle - low, half), middle + math.hypot(high - middle, half)
        error = math.hypot(error, half / float(norm.ppf((1 + LEVEL) / 2)))
    relative = Change(middle, low, high, None, middle, error) if positive else None
    return OwnChange(value, unit * low, unit * high, None, value, unit * error, relative)


def _over(value: float, before: float) -> float:
    return value / before if before > 0 else math.nan


def _can_be_resampled(tasks: Sequence[Scored]) -> bool:
    return all(task.scale != WHOLE and task.n >= FEWEST for task in tasks)


def _draws(sides: Sequence[Sequence[Scored]], shares: Sequence[float]) -> list[NDArray[np.float64]]:
    """Return for each side the weighted mean (`RESAMPLES`,), for which the same documents are drawn on all sides."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    total = [np.zeros(RESAMPLES) for _ in sides]
    for k, share in enumerate(shares):
        tasks = [side[k] for side in sides]
        n = tasks[0].n
        rows = max(1, 2_000_000 // n)  # resamples at the same time, to limit the memory
        for start in range(0, RESAMPLES, rows):
            picks = rng.integers(0, n, size=(min(rows, RESAMPLES - start), n))
            for at, task in enumerate(tasks):
                total[at][start : start + rows] += share * task.by_seed(picks).mean(axis=0)
    return total


def _interval(draws: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    import numpy as np

    if draws is None or np.isnan(draws).all():
        return None, None
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _between_seeds(old: Sequence[Scored], new: Sequence[Scored], shares: Sequence[float]) -> float:
    """Return the half width of Student's interval over seeds in the unit of the score; 0 for one seed on each side."""
    import numpy as np
    from scipy.stats import t

    sides = []
    for side in (old, new):
        every = [share * task.by_seed(np.arange(task.n)[None])[:, 0] for share, task in zip(shares, side, strict=True)]
        sides.append(np.sum(every, axis=0))
    counts = [len(side) for side in sides]
    if max(counts) == 1:
        return 0.0
    variance = sum(float(side.var(ddof=1)) / len(side) for side in sides if len(side) > 1)
    options = [(variance, max(1, sum(counts) - 2))]
    if counts[0] == counts[1]:
        options.append((float((sides[1] - sides[0]).var(ddof=1)) / counts[0], counts[0] - 1))
    return min(float(t.ppf((1 + LEVEL) / 2, df)) * math.sqrt(v) for v, df in options)
