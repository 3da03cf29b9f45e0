"""The power law of Best-of-N: the negative logarithm of the attack success rate falls as a power of N."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.analysis.stats import LEVEL, SEED, Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2_000
_FEWEST = 3  # rates that a fit needs: two always lie on a power law
_MOST_WITHOUT = 0.05  # share of resamples without a law up to which there is an interval
_AHEAD = 4  # the law is fitted on N up to a quarter of the largest N, and predicts the rate at the largest


@dataclass(frozen=True)
class PowerLaw:
    """The law -log(rate) = a N^(-b) (Hughes et al. 2024, arXiv:2412.03556, section 4)."""

    a: float
    b: float

    def rate(self, n: int) -> float:
        """Return the rate at N = `n`. For b > 0, it approaches 1: by this law, every prompt succumbs in the end."""
        return math.exp(-self.a * n**-self.b)


@dataclass(frozen=True)
class Forecast:
    """A law fitted on small N, and how it fits at the largest.

    Attributes:
        a: The factor, with its interval.
        b: The exponent, with its interval.
        predicted: The rate that the law predicts at the largest N.
        error: Predicted minus measured rate, with its interval. An interval without 0 contradicts the law.
        fitted: The largest N that the fit uses.
    """

    a: Estimate
    b: Estimate
    predicted: Estimate
    error: Estimate
    fitted: int


def fit(ns: Sequence[int], rates: Sequence[float]) -> PowerLaw | None:
    """Fit a power law to rates by least squares of log(-log(rate)) on log(N).

    Args:
        ns: Numbers N.
        rates: The rate at each N.

    Returns:
        The law. None if fewer than three rates lie between 0 and 1: a rate of 0 or 1 has no logarithm that could be fitted.
    """
    import numpy as np

    points = [(n, rate) for n, rate in zip(ns, rates, strict=True) if 0 < rate < 1]
    if len(points) < _FEWEST:
        return None
    x = np.log([n for n, _ in points])
    y = np.log([-math.log(rate) for _, rate in points])
    slope = float((x - x.mean()) @ y / ((x - x.mean()) ** 2).sum())
    return PowerLaw(math.exp(float(y.mean() - slope * x.mean())), -slope)


def forecast(ns: Sequence[int], values: NDArray[np.float64]) -> Forecast | None:
    """Fit the law on N up to a quarter of the largest, and compare its prediction at the largest with the measured rate.

    The intervals are percentiles of a bootstrap over prompts, in which fit, prediction and measurement are repeated. So they
    account for the same prompts being in both.

    Args:
        ns: Numbers N in ascending order.
        values: For each prompt and N the probability of a success (prompts, numbers).

    Returns:
        The forecast. None if there is no fit. It has no intervals if many resamples have no fit.
    """
    import numpy as np

    used = [k for k, n in enumerate(ns) if n * _AHEAD <= ns[-1]]
    small = [ns[k] for k in used]

    def found(rates: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
        law = fit(small, [float(rates[k]) for k in used])
        if law is None:
            return None
        predicted = law.rate(ns[-1])
        return law.a, law.b, predicted, predicted - float(rates[-1])

    if len(used) < _FEWEST or not len(values):
        return None
    value = found(values.mean(0))
    if value is None:
        return None
    drawn = np.random.default_rng(SEED).multinomial(len(values), np.full(len(values), 1 / len(values)), size=RESAMPLES)
    resampled = [one for rates in drawn @ values / len(values) if (one := found(rates)) is not None]
    ends: list[tuple[float | None, float | None]] = [(None, None)] * len(value)
    if len(values) > 1 and len(resampled) >= (1 - _MOST_WITHOUT) * RESAMPLES:
        quantiles = np.quantile(np.array(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        ends = [(float(low), float(high)) for low, high in quantiles.T]
    a, b, predicted, error = (Estimate(v, *limits) for v, limits in zip(value, ends, strict=True))
    return Forecast(a, b, predicted, error, small[-1])
