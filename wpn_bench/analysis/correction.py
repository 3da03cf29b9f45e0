"""Rates of harmful answers, corrected for the errors of the judge.

There are two sources of what a judge gets wrong:

* Labels on other texts (a judge card): the judge's sensitivity and specificity. `corrected_rate` assumes that they are the
  same on the answers in question.
* Labels on a random sample of the answers themselves, drawn within strata of the judge's score: `stratified_rate` assumes
  nothing about the judge. `errors_from_labels` turns such labels into a sensitivity and a specificity, with which
  `corrected_rate` corrects the rates of single models or prompt sets that have too few labels of their own.

Harmful is the positive class throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.analysis.stats import LEVEL, RESAMPLES, SEED, Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Counts = tuple[float, float]  # right, of


@dataclass(frozen=True)
class Corrected(Estimate):
    """A corrected proportion; `cut` says that it fell outside 0 to 1 and was clipped."""

    cut: bool


@dataclass(frozen=True)
class Stratum:
    """The answers with scores in one range, of which a random sample is labelled.

    Attributes:
        size: The number of answers.
        labelled: The number of labelled answers, drawn at random among them.
        harmful: How many of the labelled answers are harmful by their labels.
        called: Whether the judge calls these answers harmful; None if the stratum contains both kinds.
    """

    size: int
    labelled: int
    harmful: int
    called: bool | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.harmful <= self.labelled <= self.size:
            raise ValueError(f"{self} does not satisfy harmful <= labelled <= size")


@dataclass(frozen=True)
class Errors:
    """What is known of a judge's errors.

    Attributes:
        sensitivity: (right, of): of how many harmful texts the judge called how many harmful. From `errors_from_labels`,
            the counts are effective ones and no integers.
        specificity: (right, of) of the harmless texts.
        covariance: Covariance of the two estimates. 0 if they are from different texts.
    """

    sensitivity: Counts
    specificity: Counts
    covariance: float = 0.0

    def __post_init__(self) -> None:
        if any(not 0 <= right <= of for right, of in (self.sensitivity, self.specificity)):
            raise ValueError(f"{self}: a judge cannot be right more often than it was asked")


def corrected_rate(share: float, n: int, errors: Errors, variance: float | None = None) -> Corrected:
    """Correct a proportion for the errors of a judge (Rogan & Gladen 1978): pi = (p + Sp - 1) / (Se + Sp - 1).

    The interval is that of Lang & Reiczigel (2014, Preventive Veterinary Medicine 113), where Se and Sp are estimates, too:
    with z = 1.96, p' = (n p + z^2/2) / n', n' = n + z^2, Se' = (right + 1) / m, m = of + 2, Sp' and k likewise,
    J = Se' + Sp' - 1, pi' = (p' + Sp' - 1) / J,

        pi' + 2 z^2 [pi' Se'(1 - Se')/m - (1 - pi') Sp'(1 - Sp')/k]
            +- z / J sqrt(p'(1 - p')/n' + pi'^2 Se'(1 - Se')/m + (1 - pi')^2 Sp'(1 - Sp')/k - 2 pi'(1 - pi') Cov(Se, Sp)).

    Args:
        share: p, the proportion of answers that the judge calls harmful.
        n: The number of judged answers.
        errors: The judge's errors.
        variance: The variance of p if p is a mean over seeds; it replaces p'(1 - p')/n', and p' = p.

    Returns:
        The proportion, clipped to [0, 1]; NaN without interval for n = 0, NaN as share, errors that were not measured
        (of = 0), or a judge no better than chance (Se + Sp <= 1).

    Raises:
        ValueError: `share` is outside [0, 1].
    """
    from scipy.stats import norm

    if share < 0 or share > 1:
        raise ValueError(f"{share} is no proportion")
    sensitivity, specificity = errors.sensitivity, errors.specificity
    if n == 0 or math.isnan(share) or not sensitivity[1] or not specificity[1]:
        return Corrected(math.nan, None, None, False)
    se, sp = sensitivity[0] / sensitivity[1], specificity[0] / specificity[1]
    m, k = sensitivity[1] + 2, specificity[1] + 2
    se_, sp_ = (sensitivity[0] + 1) / m, (specificity[0] + 1) / k
    gain = se_ + sp_ - 1
    if min(se + sp - 1, gain) <= 1e-9:
        return Corrected(math.nan, None, None, False)
    raw = (share + sp - 1) / (se + sp - 1)
    value = min(1.0, max(0.0, raw))
    z = float(norm.ppf((1 + LEVEL) / 2))
    p, spread = share, variance
    if spread is None:
        p = (n * share + z**2 / 2) / (n + z**2)
        spread = p * (1 - p) / (n + z**2)
    of_se, of_sp = se_ * (1 - se_) / m, sp_ * (1 - sp_) / k
    true = (p + sp_ - 1) / gain
    shift = 2 * z**2 * (true * of_se - (1 - true) * of_sp)
    spread += true**2 * of_se + (1 - true) ** 2 * of_sp - 2 * true * (1 - true) * errors.covariance
    half = z * math.sqrt(max(0.0, spread)) / gain
    low, high = (min(1.0, max(0.0, true + shift + end * half)) for end in (-1, 1))
    return Corrected(value, min(low, value), max(high, value), not 0 <= raw <= 1)


def stratified_rate(strata: Sequence[Stratum], draws: int = RESAMPLES) -> Estimate:
    """Estimate the rate of harmful answers from labels that were drawn within strata.

    The estimate is sum_h W_h x_h / n_h, with W_h the share of stratum h among all answers and x_h of n_h labels harmful
    (Cochran 1977, chapter 12, double sampling for stratification). It does not depend on the judge's errors: a bad judge
    only makes the interval wider.

    The interval contains the rate on prompts like these, not only on these prompts. Its ends are quantiles of
    sum_h w_h q_h, with w ~ Dirichlet(N_h) for the sampling of prompts and q_h ~ Beta(x_h + W_h / 2, n_h - x_h + W_h / 2)
    for that of labels. The pseudo-counts sum to those of Jeffreys' interval for one proportion: with 1/2 in each of
    several strata without a harmful label, the interval would lie above the true rate.

    Args:
        strata: The strata. Those without answers are ignored.
        draws: The number of random draws, from one fixed stream.

    Returns:
        The rate with its 95 % interval; NaN without interval if there are no answers, or none is labelled in a stratum.
    """
    import numpy as np

    size, labelled, harmful = _columns(strata)
    if not len(size) or not labelled.all():
        return Estimate(math.nan, None, None)
    rng = np.random.default_rng(SEED)
    weight = size / size.sum()
    value = float(weight @ (harmful / labelled))
    shares = rng.beta(harmful + weight / 2, labelled - harmful + weight / 2, (draws, len(size)))
    sizes = rng.standard_gamma(size, (draws, len(size)))
    low, high = np.quantile((shares * sizes).sum(1) / sizes.sum(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def errors_from_labels(strata: Sequence[Stratum]) -> Errors:
    """Estimate sensitivity and specificity from labels that were drawn within strata.

    Each label counts as many answers as it stands for, N_h / n_h. The counts that are returned are effective ones: a simple
    random sample of `of` texts would give an estimate of the same variance (delta method, with the pseudo-counts of
    `stratified_rate`). Both estimates are from the same labels, so they have a covariance.

    Args:
        strata: The strata, each with `called`. Those without answers are ignored.

    Returns:
        The errors, for `corrected_rate`; `of` is 0 if nothing is known: no answer is harmful (or none harmless) by the
        labels, or a stratum has no label.

    Raises:
        ValueError: A stratum contains answers of both verdicts.
    """
    import numpy as np

    if any(s.called is None for s in strata):
        raise ValueError("strata for a judge's errors must not contain answers of both verdicts")
    size, labelled, harmful = _columns(strata)
    if not len(size) or not labelled.all():
        return Errors((0.0, 0.0), (0.0, 0.0))
    called = np.array([s.called for s in strata if s.size], dtype=bool)
    pseudo = size / size.sum() / 2
    q = (harmful + pseudo) / (labelled + 2 * pseudo)
    noise = q * (1 - q) * (1 / labelled - 1 / size)  # variance of the harmful share among the answers of a stratum
    counts: list[Counts] = []
    slopes: list[NDArray[np.float64]] = []
    for found, smooth, right in ((harmful, q, called), (labelled - harmful, 1 - q, ~called)):
        members = size * found / labelled
        if not members.sum():
            counts.append((0.0, 0.0))
            continue
        total = float(size @ smooth)
        centre = float(size[right] @ smooth[right]) / total
        slope = (right - centre) * size / total
        slopes.append(slope)
        variance = float(slope**2 @ noise) + centre * (1 - centre) / total
        of = centre * (1 - centre) / variance
        counts.append((float(members[right].sum() / members.sum()) * of, of))
    # More harmful answers in a stratum are fewer harmless ones: the second slope has the opposite sign.
    return Errors(counts[0], counts[1], -float(slopes[0] * slopes[1] @ noise) if len(slopes) == 2 else 0.0)


def _columns(strata: Sequence[Stratum]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sizes, labels and harmful labels of the strata with answers."""
    import numpy as np

    table = np.array([(s.size, s.labelled, s.harmful) for s in strata if s.size], dtype=float).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
