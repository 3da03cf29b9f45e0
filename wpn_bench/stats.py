"""Statistics of the comparison: intervals for rates, paired differences, non-inferiority, several seeds.

All intervals are two-sided at 95 %. Bootstraps are seeded, so the same items give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
_SEED = 20_240_817

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where no interval can be had (n = 0 or one seed)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, model minus base, with the p-value of "no difference" (None where there is no test)."""

    p_value: float | None


def rate(successes: int, n: int) -> Estimate:
    """A share with its Wilson interval (Wilson 1927). NaN without interval for n = 0."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Estimate(math.nan, None, None)
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n
    # At 0 and 1 the formula misses the value by a last digit.
    return Estimate(value, min(float(low), value), max(float(high), value))


def paired_rates(base: Sequence[bool], model: Sequence[bool]) -> Difference:
    """Difference of two rates on the same items: exact McNemar test, interval of Bonett and Price (2012).

    That interval adds one pseudo-item to each kind of change, so it has a width even when nothing changed.
    """
    from scipy.stats import norm
    from statsmodels.stats.contingency_tables import mcnemar

    n = len(base)
    if n == 0:
        return Difference(math.nan, None, None, None)
    gained = sum(m and not b for b, m in zip(base, model, strict=True))
    lost = sum(b and not m for b, m in zip(base, model, strict=True))
    p = float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = norm.ppf((1 + LEVEL) / 2) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value = (gained - lost) / n
    # The interval is centred on the adjusted difference; the plain one lies inside it.
    return Difference(value, max(-1.0, up - down - half), min(1.0, up - down + half), p)


def _bootstrap_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Means of `RESAMPLES` resamples of `values` with replacement.

    Few distinct values (correct or not, better or worse) are drawn as counts, which is the same and much faster.
    """
    import numpy as np

    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) <= 16:
        drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
        means: NDArray[np.float64] = drawn @ kinds / len(values)
        return means
    picks = rng.integers(0, len(values), size=(RESAMPLES, len(values)))
    return values[picks].mean(axis=1)


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_by_bootstrap(groups: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the group means, each group resampled on its own (one group: a plain mean)."""
    import numpy as np

    rng = np.random.default_rng(_SEED)
    arrays = [np.asarray(g, dtype=float) for g in groups]
    means = np.mean([_bootstrap_means(a, rng) for a in arrays], axis=0)
    low, high = _interval(means)
    return Estimate(float(np.mean([a.mean() for a in arrays])), low, high)


def paired_accuracies(base: Sequence[Sequence[bool]], model: Sequence[Sequence[bool]]) -> Difference:
    """Difference of (macro-averaged) accuracies on the same documents: paired bootstrap within each task.

    `base` and `model` hold one sequence a task. For the interval each task gets two pseudo-documents, one won and one
    lost, as Bonett and Price (2012) do for rates: where no document changed, few documents must not pass for certainty
    (a plain bootstrap would give an interval of no width). The p-value is McNemar's for one task; for several it is the
    bootstrap's two-sided share of differences beyond zero.
    """
    import numpy as np

    rng = np.random.default_rng(_SEED)
    deltas = [np.asarray(m, dtype=float) - np.asarray(b, dtype=float) for b, m in zip(base, model, strict=True)]
    means = np.mean([_bootstrap_means(d, rng) for d in deltas], axis=0)
    low, high = _interval(np.mean([_bootstrap_means(np.append(d, [1.0, -1.0]), rng) for d in deltas], axis=0))
    value = float(np.mean([d.mean() for d in deltas]))
    if len(deltas) == 1:
        p = paired_rates(list(base[0]), list(model[0])).p_value
    else:
        beyond = min(np.mean(means <= 0), np.mean(means >= 0))
        p = float(min(1.0, max(2 * beyond, 1 / RESAMPLES)))
    return Difference(value, low, high, p)


def ratio(sums: Sequence[float], weights: Sequence[float]) -> Estimate:
    """sum(sums) / sum(weights), windows resampled: mean token loss from windows of text."""
    import numpy as np

    s, w = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    picks = np.random.default_rng(_SEED).integers(0, len(s), size=(2000, len(s)))
    low, high = _interval(s[picks].sum(1) / w[picks].sum(1))
    return Estimate(float(s.sum() / w.sum()), low, high)


def paired_ratio(base: Sequence[float], model: Sequence[float], weights: Sequence[float]) -> Difference:
    """Difference of two ratios over the same windows, resampled together."""
    import numpy as np

    delta = ratio(list(np.asarray(model, dtype=float) - np.asarray(base, dtype=float)), weights)
    return Difference(delta.value, delta.low, delta.high, None)


def over_seeds(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Mean over seeds with Student's t interval over them (not over pooled items), cut to [low, high]."""
    import numpy as np
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, max(low, mean - half), min(high, mean + half))


def over_seeds_p(deltas: Sequence[float]) -> float | None:
    """Two-sided t-test of "the mean difference over seeds is zero"; None for one seed or no spread."""
    import numpy as np
    from scipy.stats import ttest_1samp

    # Not std == 0: the mean of equal numbers may be off by a last digit, and p would be 1e-32.
    if len(deltas) < 2 or float(np.ptp(deltas)) < 1e-12:
        return None
    return float(ttest_1samp(deltas, 0.0).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) adjustment; None stays None and does not count."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    adjusted = iter(multipletests(known, method="holm")[1])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def non_inferiority(difference_low: float | None, difference_high: float | None, margin: float) -> Verdict:
    """Is the model at most `margin` worse? `pass` if the whole interval lies above -margin, `fail` if all of it lies
    below, else `inconclusive`: the data do not bear a claim either way."""
    if difference_low is None or difference_high is None:
        return "inconclusive"
    if difference_low >= -margin:
        return "pass"
    return "fail" if difference_high < -margin else "inconclusive"
