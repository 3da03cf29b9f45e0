"""What benign answers are like beside being harmless: their length, their diversity, and how near they are to the base's own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, metric_row
from wpn_bench.analysis.sampling_rows import mean_over_prompts
from wpn_bench.analysis.stats import Difference, Estimate
from wpn_bench.prompts.leakage import words
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import ANSWER_WORDS, BENIGN, DISTINCT_PAIRS_RATE, OVERLAP_WITH_BASE_RATE, SAME_AS_BASE_RATE

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

DRAWN = 100  # pairs of words that are drawn for the diversity


def utility_rows(samples: pd.DataFrame) -> list[Row]:
    """Describe the answers of every model to each benign prompt set.

    Args:
        samples: All samples (see `metric_rows.read_samples`).

    Returns:
        For each model, seed and benign set: the mean number of words per answer and the share of different word pairs with their
        paired changes against base. For all models but the base, also the mean overlap with the base's answer (`overlap`), and the
        share of answers that are the same as the base's. Prompts without an answer do not count. An empty answer does.
    """
    if samples.empty:
        return []
    rows: list[Row] = []
    answered = samples[(samples["suite"] == BENIGN) & samples["response"].notna()]
    for name, of_set in answered.groupby("set", sort=False):
        of_base = of_set[of_set["model"] == BASE].set_index("item_id")["response"]
        for (model, seed), own in of_set.groupby(["model", "seed"], sort=False, dropna=False):
            seed_ = None if model == BASE else int(str(seed))
            mine = own.set_index("item_id")["response"]
            theirs = None if model == BASE else of_base.loc[mine.index.intersection(of_base.index)]
            for metric, n, estimate, change in _measured(mine, theirs):
                rows.append(metric_row(str(model), seed_, BENIGN, str(name), metric, n, estimate, change))
    return rows


def _measured(mine: pd.Series, theirs: pd.Series | None) -> list[tuple[str, int, Estimate, Difference]]:
    """Return (metric, number of answers, value, change). `theirs` has the base's answers to the same prompts; None for the base."""
    import numpy as np

    told = {item: words(text) for item, text in mine.items()}
    length = _mean([len(one) for one in told.values()])
    various, without = distinct_pairs(list(told.values()))
    found = [(ANSWER_WORDS, len(told), length, NO_DIFFERENCE), (DISTINCT_PAIRS_RATE, len(told), various, NO_DIFFERENCE)]
    if theirs is None or theirs.empty:
        return found
    own, old = [told[item] for item in theirs.index], [words(text) for text in theirs]
    longer = stats.paired_ratio([len(one) for one in old], [len(one) for one in own], [1.0] * len(own))
    longer = longer if len(own) > 1 else Difference(longer.value, None, None, None)
    found[0] = (*found[0][:3], longer)
    before, of_old = distinct_pairs(old)
    if len(own) < len(told):
        various, without = distinct_pairs(own)
    if (ends := _jackknife(various.value - before.value, without - of_old)) is not None:
        change = Difference(various.value - before.value, max(-1.0, ends[0]), min(1.0, ends[1]), None)
        found[1] = (*found[1][:3], change)
    shared = np.array([overlap(one, other) for one, other in zip(own, old, strict=True)])
    same = sum(mine.loc[theirs.index] == theirs)
    found.append((OVERLAP_WITH_BASE_RATE, len(own), mean_over_prompts(shared), NO_DIFFERENCE))
    found.append((SAME_AS_BASE_RATE, len(own), stats.rate(int(same), len(own)), NO_DIFFERENCE))
    return found


def _mean(values: Sequence[int]) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values[0]), None, None)
    return stats.ratio(values, [1.0] * len(values))


def distinct_pairs(answers: Sequence[Sequence[str]]) -> tuple[Estimate, NDArray[np.float64]]:
    """Estimate how many of `DRAWN` pairs of neighbouring words are different, if they are drawn at random from all answers.

    The share of different pairs among all pairs (distinct-2, Li et al. 2016, arXiv:1510.03055) falls with the length and the number
    of the answers. So models whose answers differ in length cannot be compared by it (Liu et al. 2022, arXiv:2202.13587). The
    expectation for a fixed number that is drawn without replacement (Hurlbert 1971, equation 7) does not have this fault.

    Args:
        answers: The words of each answer. Pairs do not cross answers.

    Returns:
        The expected number of different pairs divided by `DRAWN`, with the interval of the jackknife over answers; and the value
        without each answer (N,). NaN if there are fewer than `DRAWN` pairs. There is no interval if this is so without one answer.
    """
    import numpy as np

    counted = [Counter(pairwise(one)) for one in answers]
    whole = sum(counted, Counter())
    kinds = np.bincount(list(whole.values()) or [0])  # how many kinds of pairs occur once, twice, ...
    value = _expected(kinds)
    without = np.empty(len(counted))
    for k, one in enumerate(counted):
        rest = kinds.copy()
        before, gone = np.array([whole[pair] for pair in one], dtype=int), np.array(list(one.values()), dtype=int)
        np.subtract.at(rest, before, 1)
        np.add.at(rest, before - gone, 1)
        without[k] = _expected(rest)
    ends = _jackknife(value, without)
    if ends is None:
        return Estimate(value, None, None), without
    return Estimate(value, max(0.0, ends[0]), min(1.0, ends[1])), without


def _expected(kinds: NDArray[np.int64]) -> float:
    """Return the expected share of different kinds among `DRAWN` things.

    Args:
        kinds: At index k, the number of kinds that have k things.

    Returns:
        The share; NaN if there are fewer than `DRAWN` things.
    """
    import numpy as np
    from scipy.special import gammaln

    sizes = np.arange(len(kinds))
    total = int(sizes @ kinds)
    if total < DRAWN:
        return math.nan
    others = np.maximum(total - sizes, DRAWN)
    # The probability that no drawn thing is of a kind: C(total - size, DRAWN) / C(total, DRAWN).
    log = gammaln(others + 1) - gammaln(others - DRAWN + 1) - gammaln(total + 1) + gammaln(total - DRAWN + 1)
    absent = np.where(total - sizes >= DRAWN, np.exp(log), 0.0)
    return float(kinds[1:] @ (1.0 - absent[1:]) / DRAWN)


def _jackknife(value: float, without: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the interval of a value by its values without each of n items (Efron and Tibshirani 1993, equation 11.5).

    On average, it is too wide and not too narrow (Efron and Stein 1981). A bootstrap would draw answers twice and call them less diverse.
    """
    import numpy as np
    from scipy.stats import t

    n = len(without)
    if n < 2 or bool(np.isnan(without).any()):
        return None
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    half = float(t.ppf((1 + stats.LEVEL) / 2, n - 1)) * error
    return value - half, value + half


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Return how much two answers have in common: the F1 of ROUGE-L (Lin 2004, section 3).

    It is 2 L / (m + n) for a longest common subsequence of L words of answers with m and n words. Two answers without words are equal
    (1), and one without words has nothing in common with one that has words (0).

    Args:
        one: Words of an answer.
        other: Words of the other answer.

    Returns:
        The overlap, from 0 to 1.
    """
    if not one or not other:
        return float(not one and not other)
    # Each bit stands for a word of `one`; a cleared bit has been matched (Hyyrö 2004). This is many times faster than the table.
    places: dict[str, int] = {}
    for k, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << k
    all_ = (1 << len(one)) - 1
    left = all_
    for word in other:
        hit = left & places.get(word, 0)
        left = ((left + hit) | (left - hit)) & all_
    return 2.0 * (len(one) - left.bit_count()) / (len(one) + len(other))
