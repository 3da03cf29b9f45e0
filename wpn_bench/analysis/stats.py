"""Statistics for comparisons: intervals of rates, paired differences, tests against a margin, and several seeds.

All intervals are two-sided at 95 %. Bootstraps are seeded, so the same items give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.runs.view import mean_with_limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20_240_817


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `low` and `high` are None if there is no interval (n = 0, or one seed)."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, model minus base, with the p-value of "no difference" (None if there is no test)."""

    p_value: float | None


def rate(successes: float, n: float) -> Estimate:
    """Return a proportion with its Wilson (1927) interval.

    Args:
        successes: Number of successes.
        n: Number of trials. An effective number, as for a stratified sample, need not be an integer.

    Returns:
        The proportion; NaN without an interval for n = 0.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return Estimate(math.nan, None, None)
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n
    # At 0 and 1, rounding can put the end of the interval slightly on the wrong side of the value.
    return Estimate(value, min(float(low), value), max(float(high), value))


def _bootstrap_means(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the means of `RESAMPLES` resamples of `values` with replacement.

    If there are few distinct values, their counts are sampled instead of the values. The distribution is the same, and
    this is much faster.
    """
    import numpy as np

    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) <= 16:
        drawn = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
        means: NDArray[np.float64] = drawn @ kinds / len(values)
        return means
    rows = max(1, 10_000_000 // len(values))  # number of resamples at the same time, to limit the memory
    parts = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    return np.concatenate([values[rng.integers(0, len(values), size=(n, len(values)))].mean(axis=1) for n in parts])


def _interval(means: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_by_bootstrap(groups: Sequence[Sequence[float]]) -> Estimate:
    """Return the mean of the group means with a bootstrap interval, for which items are resampled within each group.

    With one group, this is the plain mean.
    """
    import numpy as np

    rng = np.random.default_rng(SEED)
    arrays = [np.asarray(g, dtype=float) for g in groups]
    means = np.mean([_bootstrap_means(a, rng) for a in arrays], axis=0)
    low, high = _interval(means)
    return Estimate(float(np.mean([a.mean() for a in arrays])), low, high)


@dataclass(frozen=True)
class Change(Difference):
    """A paired change of a mean of group means, new minus old.

    `centre` and `error` are the mean and the standard error of its normal approximation, for tests against a margin.
    """

    centre: float
    error: float

    def p_within(self, margin: float, better: int = 1) -> float:
        """Return the one-sided p-value of the hypothesis "it got worse by no more than `margin`".

        Args:
            margin: The margin, as a fraction.
            better: 1 if higher is better, -1 if lower is better.

        Returns:
            The p-value.
        """
        from scipy.stats import norm

        return float(norm.cdf((better * self.centre + margin) / self.error))


def paired_change(
    old: Sequence[NDArray[np.float64]], new: Sequence[NDArray[np.float64]], *, resampled: bool = False
) -> Change:
    """Return the change of a macro average over groups (benchmarks, prompt sets) of answers to the same items.

    This is the only implementation, which results.json, the comparison of runs and `wpn-bench check` use. All intervals
    add one gained and one lost item to every group, as Bonett and Price (2012) do. Otherwise a few items without a
    change would give an interval of width zero.

    * Prompt sets have the interval of Bonett and Price. For several sets, `mean_with_limits` combines these intervals.
    * Benchmarks (`resampled`) have a bootstrap interval. Items are resampled within each group, from one fixed random
      stream.
    * With several seeds, each item counts with its mean over seeds. Student's interval over the seeds is combined with
      the interval over the items: the half-widths are added as squares. Student's interval uses the variances of both
      sides. If both sides have the same number of seeds, the variance of the differences between seeds in the same
      order is used where this is shorter. So repeated trainings with the same seeds have no variance between them.
      Variance that seeds and items share is counted twice, which compensates for the choice of the shorter interval
      (`benchmarks/check_errors.py` measures the error rates).

    Args:
        old: For each group an array (seeds, items) of values from 0 to 1.
        new: The same for the other side. The number of seeds may differ.
        resampled: Whether the items are resampled.

    Returns:
        The change with its interval. The p-value of "no difference" exists only for one seed on each side. For one
        group of right and wrong answers it is McNemar's. For several groups and other scores it is the two-sided share
        of bootstrap differences beyond zero.

    Raises:
        ValueError: The two sides do not have the same items.
    """
    import numpy as np
    from scipy.stats import norm, t

    before = [np.asarray(group, dtype=float) for group in old]
    after = [np.asarray(group, dtype=float) for group in new]
    if [group.shape[1] for group in before] != [group.shape[1] for group in after]:
        raise ValueError("old and new must answer the same items")
    deltas = [a.mean(axis=0) - b.mean(axis=0) for b, a in zip(before, after, strict=True)]
    k = len(deltas)
    closed = [_bonett_price(d) for d in deltas]
    value, low, high = mean_with_limits([(e.value, e.low, e.high) for e in closed])
    centre = float(np.mean([e.centre for e in closed]))
    error = math.sqrt(sum(e.error**2 for e in closed)) / k
    p: float | None = None
    one_seed = all(len(group) == 1 for group in (*before, *after))
    if resampled:
        rng = np.random.default_rng(SEED)
        means = np.mean([_bootstrap_means(d, rng) for d in deltas], axis=0)
        low, high = _interval(np.mean([_bootstrap_means(np.append(d, [1.0, -1.0]), rng) for d in deltas], axis=0))
        value = float(np.mean([d.mean() for d in deltas]))
        beyond = min(np.mean(means <= 0), np.mean(means >= 0))
        p = float(min(1.0, max(2 * beyond, 1 / RESAMPLES))) if one_seed else None
    if k == 1 and (not resampled or bool(np.isin(deltas[0], (-1.0, 0.0, 1.0)).all())):
        p = _mcnemar(deltas[0]) if one_seed else None
    assert value is not None
    assert low is not None
    assert high is not None
    if not one_seed:
        by_seed = [np.mean([group.mean(axis=1) for group in side], axis=0) for side in (before, after)]
        counts = [len(seeds) for seeds in by_seed]
        apart = sum(map(_variance_of_mean, by_seed)), sum(counts) - 2
        together = (_variance_of_mean(by_seed[1] - by_seed[0]), counts[0] - 1) if counts[0] == counts[1] else apart
        half = min(float(t.ppf((1 + LEVEL) / 2, df)) * math.sqrt(v) for v, df in (apart, together))
        low, high = value - math.hypot(value - low, half), value + math.hypot(high - value, half)
        error = math.hypot(error, half / float(norm.ppf((1 + LEVEL) / 2)))
    return Change(value, max(-1.0, low), min(1.0, high), p, centre, error)


def paired_rates(base: Sequence[bool], model: Sequence[bool]) -> Difference:
    """Return the paired change for one prompt set and one seed (see `paired_change`).

    Args:
        base: Answers of the base model.
        model: Answers of the model to the same items.

    Returns:
        The change; NaN without an interval if there are no items.
    """
    import numpy as np

    if not len(base):
        return Difference(math.nan, None, None, None)
    return paired_change([np.asarray(base, dtype=float)[None]], [np.asarray(model, dtype=float)[None]])


def paired_accuracies(base: Sequence[Sequence[float]], model: Sequence[Sequence[float]]) -> Difference:
    """Return the paired change for several benchmarks and one seed (see `paired_change`).

    Args:
        base: Scores of the base model's answers from 0 to 1, one sequence for each benchmark.
        model: Scores of the model's answers to the same items.

    Returns:
        The change of the macro average.
    """
    import numpy as np

    sides = [[np.asarray(group, dtype=float)[None] for group in side] for side in (base, model)]
    return paired_change(sides[0], sides[1], resampled=True)


def _bonett_price(delta: NDArray[np.float64]) -> Change:
    """Return the interval of Bonett and Price (2012) for a paired change of a rate, with McNemar's exact p-value.

    `delta` (items,) is the change of each item, from -1 to 1. It may be a mean over seeds.
    """
    from scipy.stats import norm

    n = len(delta)
    gained, lost = float(delta[delta > 0].sum()), -float(delta[delta < 0].sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    # If every change is -1, 0 or 1, sum(delta^2) equals gained + lost.
    spread = up + down - (gained + lost - float(delta @ delta)) / (n + 2)
    error = math.sqrt((spread - (up - down) ** 2) / (n + 2))
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    # The interval is centred on the adjusted difference. It contains the unadjusted one.
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Change((gained - lost) / n, low, high, None, up - down, error)


def _mcnemar(delta: NDArray[np.float64]) -> float:
    from statsmodels.stats.contingency_tables import mcnemar

    gained, lost = int((delta > 0).sum()), int((delta < 0).sum())
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0


def ratio(sums: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Return sum(sums) / sum(weights) with a bootstrap interval over windows, as for the mean token loss of text.

    Args:
        sums: Sum in each window.
        weights: Weight of each window.

    Returns:
        The ratio with its interval.
    """
    import numpy as np

    s, w = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    picks = np.random.default_rng(SEED).integers(0, len(s), size=(2000, len(s)))
    low, high = _interval(s[picks].sum(1) / w[picks].sum(1))
    return Estimate(float(s.sum() / w.sum()), low, high)


def paired_ratio(base: Sequence[float], model: Sequence[float], weights: Sequence[float]) -> Difference:
    """Return the difference of two ratios over the same windows, with a paired bootstrap interval.

    Args:
        base: The base model's sum in each window.
        model: The model's sum in each window.
        weights: Weight of each window.

    Returns:
        The difference with its interval, without a p-value.
    """
    import numpy as np

    delta = ratio(list(np.asarray(model, dtype=float) - np.asarray(base, dtype=float)), weights)
    return Difference(delta.value, delta.low, delta.high, None)


def over_seeds(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Return the mean over seeds with Student's t interval over the seeds (not over all items together).

    Args:
        values: One value per seed.
        low: Lowest possible value, at which the interval is clipped.
        high: Highest possible value, at which the interval is clipped.

    Returns:
        The mean; without an interval for one seed.
    """
    import numpy as np
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2 or not math.isfinite(mean):
        return Estimate(mean, None, None)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, max(low, mean - half), min(high, mean + half))


def variance_over_seeds(values: Sequence[float]) -> float:
    """Return the variance of the mean over seeds, scaled so that 1.96 standard errors give Student's t interval."""
    from scipy.stats import norm

    e = over_seeds(values)
    return 0.0 if e.high is None else ((e.high - e.value) / float(norm.ppf((1 + LEVEL) / 2))) ** 2


def over_seeds_p(deltas: Sequence[float]) -> float | None:
    """Return the p-value of a two-sided t-test of "the mean difference over seeds is zero".

    The result is None for one seed or if the seeds do not differ.
    """
    import numpy as np
    from scipy.stats import ttest_1samp

    # The standard deviation of equal numbers may not be exactly 0 due to rounding, and p would be 1e-32.
    if len(deltas) < 2 or float(np.ptp(deltas)) < 1e-12:
        return None
    return float(ttest_1samp(deltas, 0.0).pvalue)


def seeds_apart(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the difference of two independent means over seeds, by Welch's (1947) t-test.

    Args:
        first: Values of one side.
        second: Values of the other side.

    Returns:
        Second minus first; without an interval and p-value if a side has one seed or neither side varies.
    """
    import numpy as np
    from scipy.stats import ttest_ind

    value = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2 or max(float(np.ptp(first)), float(np.ptp(second))) < 1e-12:
        return Difference(value, None, None, None)
    found = ttest_ind(second, first, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high), float(found.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's (1979) step-down correction to p-values. None stays None and does not count.

    statsmodels is not used, because each call of it runs the garbage collector of the whole process.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted = list(p_values)
    largest = 0.0
    for rank, (p, k) in enumerate(known):
        largest = max(largest, p * (len(known) - rank))
        adjusted[k] = float(min(largest, 1.0))
    return adjusted


def auc(scores: Sequence[float], positive: Sequence[bool]) -> Estimate:
    """Return the area under the ROC curve.

    It is the probability that a positive item has a higher score than a negative one, where ties count half
    (Mann-Whitney). The interval uses the variance of DeLong, DeLong & Clarke-Pearson (1988) on the logit scale, where
    it stays in [0, 1].

    Args:
        scores: The scores.
        positive: Whether each item is positive.

    Returns:
        The area. It has no interval if a class has fewer than two items, or if the classes are perfectly separated. It
        is NaN if a class is empty.
    """
    import numpy as np
    from scipy.stats import norm, rankdata

    values, labels = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    above, below = values[labels], values[~labels]
    m, n = len(above), len(below)
    if not m or not n:
        return Estimate(math.nan, None, None)
    ranks = rankdata(np.concatenate([above, below]))
    # For each positive item the share of lower negative ones, and for each negative item the share of higher positive ones.
    of_positives = (ranks[:m] - rankdata(above)) / n
    of_negatives = 1 - (ranks[m:] - rankdata(below)) / m
    value = float(of_positives.mean())
    if min(m, n) < 2:
        return Estimate(value, None, None)
    variance = float(of_positives.var(ddof=1) / m + of_negatives.var(ddof=1) / n)
    if variance == 0 or value in (0.0, 1.0):
        return Estimate(value, None, None)
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return Estimate(value, 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre)))
