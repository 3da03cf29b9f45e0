"""Agreement between judges beyond chance: Cohen's kappa of two, Krippendorff's alpha of two or more.

Several answers to one prompt (by several models, under several attacks) are not independent, so both intervals take the
prompts as clusters. Both statistics are low where nearly all answers have the same verdict, even if the judges agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wpn_bench.analysis.stats import LEVEL, SEED, Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2_000  # of the bootstrap; 10,000 change the ends by less than 0.005


@dataclass(frozen=True)
class PairAgreement(Estimate):
    """Cohen's kappa of two judges (the estimate), their raw agreement and their positive rates over `n` items."""

    n: int
    agreement: float
    first: float
    second: float


def kappa(first: Sequence[bool], second: Sequence[bool], units: Sequence[object] | None = None) -> PairAgreement:
    """Cohen's (1960) kappa, (po - pe) / (1 - pe): po is the raw agreement, pe = sum_k r_k c_k the agreement by chance.

    The interval is the delta method's (Fleiss, Cohen & Everitt 1969), written as the variance of each item's influence

        [(1[i = j] - po)(1 - pe) - (c_i + r_j - 2 pe)(1 - po)] / (1 - pe)^2      for an item in cell (i, j),

    summed within `units`. For it, half a pseudo-item is added to each of the four cells, so that perfect agreement on a few
    items does not count as certainty.

    Args:
        first: The decisions of one judge.
        second: The decisions of the other.
        units: The cluster of each item, since answers to one prompt are not independent; None: each item is its own.

    Returns:
        The agreement; kappa is NaN without interval if both judges always give the same single answer.
    """
    import numpy as np
    from scipy.stats import norm

    n = len(first)
    if n == 0:
        return PairAgreement(math.nan, None, None, 0, math.nan, math.nan, math.nan)
    a, b = np.asarray(first, dtype=int), np.asarray(second, dtype=int)
    counts = np.zeros((2, 2))
    np.add.at(counts, (a, b), 1)

    def parts(table: NDArray[np.float64]) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
        p = table / table.sum()
        rows, columns = p.sum(1), p.sum(0)
        return float(np.trace(p)), float(rows @ columns), rows, columns

    po, pe, said, other = parts(counts)
    if pe == 1.0:
        return PairAgreement(math.nan, None, None, n, po, float(said[1]), float(other[1]))
    value = (po - pe) / (1 - pe)
    po_, pe_, rows, columns = parts(counts + 0.5)
    spread = columns[:, None] + rows[None, :] - 2 * pe_
    influence = ((np.eye(2) - po_) * (1 - pe_) - spread * (1 - po_)) / (1 - pe_) ** 2
    _, unit = np.unique(np.arange(n) if units is None else np.asarray(units, dtype=str), return_inverse=True)
    sums = np.bincount(unit, weights=influence[a, b])
    error = math.sqrt(float((sums**2).sum()) + 0.5 * float((influence**2).sum())) / (n + 2)
    half = float(norm.ppf((1 + LEVEL) / 2)) * error
    centre = (po_ - pe_) / (1 - pe_)
    # Centred on the adjusted kappa; the plain one lies inside.
    low, high = min(centre - half, value), max(centre + half, value)
    return PairAgreement(value, max(-1.0, low), min(1.0, high), n, po, float(said[1]), float(other[1]))


@dataclass(frozen=True)
class Alpha(Estimate):
    """Krippendorff's alpha (the estimate) over the `n` items that at least two judges decided."""

    n: int


def alpha(decisions: ArrayLike, units: Sequence[object] | None = None) -> Alpha:
    """Krippendorff's alpha for nominal data: 1 - Do / De, 1 for perfect agreement and 0 for agreement as by chance.

    With n_uc decisions c among the m_u decisions on item u, n_c = sum_u n_uc, n = sum_c n_c over the items with m_u >= 2
    (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"):

        alpha = 1 - (n - 1) sum_u [sum_{c != k} n_uc n_uk / (m_u - 1)] / sum_{c != k} n_c n_k.

    Missing decisions need no imputation: an item counts with the judges that decided it.

    The interval is a percentile bootstrap over `units`. Each resample also has two pseudo-items of two decisions, spread
    evenly over all pairs of classes, so that perfect agreement on a few items does not count as certainty (as in `kappa`).

    Args:
        decisions: The decisions, shape (judges, items): a number for each class, NaN for a missing decision.
        units: The cluster of each item; None: each item is its own.

    Returns:
        The agreement; NaN without interval if no item has two decisions or all decisions are of the same class.
    """
    import numpy as np

    table = np.atleast_2d(np.asarray(decisions, dtype=float))
    classes = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == classes).sum(0).astype(float)  # (items, classes)
    made = counts.sum(1)
    paired = made >= 2
    counts, made = counts[paired], made[paired]
    classes_left = int((counts.sum(0) > 0).sum())
    if classes_left < 2:
        return Alpha(math.nan, None, None, len(counts))
    apart = (made**2 - (counts**2).sum(1)) / (made - 1)
    names = np.arange(len(paired)) if units is None else np.asarray(units, dtype=str)
    _, unit = np.unique(names[paired], return_inverse=True)
    sums = np.zeros((unit.max() + 1, len(classes) + 1))  # of each cluster: n_c, then the observed disagreement
    np.add.at(sums, unit, np.column_stack([counts, apart]))
    value = float(_alpha(sums.sum(0)))
    # Clusters with the same sums are drawn together, as counts: the same resamples, in much less memory.
    kinds, times = np.unique(sums, axis=0, return_counts=True)
    drawn = np.random.default_rng(SEED).multinomial(len(sums), times / len(sums), size=RESAMPLES)
    pseudo = np.where(counts.sum(0) > 0, 4 / classes_left, 0.0)
    found = _alpha(drawn @ kinds + np.append(pseudo, 4 * (1 - 1 / classes_left)))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Alpha(value, min(float(low), value), max(float(high), value), len(counts))


def _alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Alpha from the sums over items, shape (..., classes + 1): n_c, then the observed disagreement."""
    counts, apart = sums[..., :-1], sums[..., -1]
    n = counts.sum(-1)
    found: NDArray[np.float64] = 1 - (n - 1) * apart / (n**2 - (counts**2).sum(-1))
    return found
