"""Agreement of judges, against published examples and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wpn_bench.analysis.agreement import alpha, kappa


def answers(table: list[list[int]]) -> tuple[list[bool], list[bool]]:
    """Verdicts of two judges with these counts: rows the first's no and yes, columns the second's."""
    pairs = [(bool(i), bool(j)) for i in (0, 1) for j in (0, 1) for _ in range(table[i][j])]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_by_hand() -> None:
    """20 of 50 proposals refused by both, 15 taken by both: po .7, pe .5 * .6 + .5 * .4 = .5, kappa .4."""
    k = kappa(*answers([[20, 5], [10, 15]]))
    assert (k.n, k.agreement, k.first, k.second) == (50, 0.7, 0.5, 0.4)
    assert k.value == pytest.approx(0.4)


@pytest.mark.parametrize("table", [[[200, 50], [100, 150]], [[900, 30], [20, 50]], [[10, 200], [150, 640]]])
def test_kappa_against_statsmodels(table: list[list[int]]) -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    k, known = kappa(*answers(table)), cohens_kappa(table)
    assert k.value == pytest.approx(known.kappa)
    assert k.low is not None
    assert k.high is not None
    # Half an item in each cell moves the ends a little.
    assert (k.low, k.high) == pytest.approx((known.kappa_low, known.kappa_upp), abs=0.01)


def test_kappa_where_all_is_one_kind() -> None:
    k = kappa([False] * 5, [False] * 5)
    assert math.isnan(k.value)
    assert (k.low, k.high, k.agreement) == (None, None, 1.0)
    perfect = kappa(*answers([[3, 0], [0, 3]]))
    assert perfect.value == perfect.high == 1.0
    assert perfect.low is not None
    assert perfect.low < 0.7  # six items prove little
    assert math.isnan(kappa([], []).value)


def test_answers_to_one_prompt_are_no_independent_items() -> None:
    a, b = answers([[20, 5], [10, 15]])
    once = kappa(a, b)
    again = kappa(a * 4, b * 4, [*range(50)] * 4)
    blind = kappa(a * 4, b * 4)
    widths = [k.high - k.low for k in (once, again, blind) if k.low is not None and k.high is not None]
    assert widths[1] == pytest.approx(widths[0], rel=0.1)
    assert widths[2] < 0.6 * widths[0]


@pytest.mark.parametrize(("n", "share", "agreeing"), [(60, 0.4, 0.8), (200, 0.15, 0.9), (400, 0.5, 0.6)])
def test_kappas_interval_covers(n: int, share: float, agreeing: float) -> None:
    """Two judges who look at the same truth and each keep to it with probability `agreeing`."""
    rng = np.random.default_rng(0)

    def judged(n: int) -> tuple[list[bool], list[bool]]:
        truth = rng.random(n) < share
        one, two = (np.where(rng.random(n) < agreeing, truth, rng.random(n) < share) for _ in range(2))
        return one.tolist(), two.tolist()

    true = kappa(*judged(400_000)).value
    found = [kappa(*judged(n)) for _ in range(500)]
    covered = np.mean([k.low is not None and k.high is not None and k.low <= true <= k.high for k in found])
    assert covered >= 0.925


def test_kappa_against_sklearn() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    first = rng.random(300) < 0.3
    second = np.where(rng.random(300) < 0.8, first, rng.random(300) < 0.5)
    assert kappa(first.tolist(), second.tolist()).value == pytest.approx(cohen_kappa_score(first, second))


N = math.nan


@pytest.mark.parametrize(
    ("decisions", "known"),
    [
        pytest.param(
            [
                [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
                [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
                [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
                [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
            ],
            0.743,
            id="Krippendorff 2011, section C: four observers, missing values",
        ),
        pytest.param(
            [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]],
            0.095,
            id="Krippendorff 2011, section A: two observers, two classes",
        ),
        pytest.param(
            [[1, 1, 2, 2, 4, 3, 3, 3, 5, 4, 4, 1], [2, 1, 2, 2, 2, 3, 3, 3, 5, 4, 4, 4]],
            0.692,
            id="Krippendorff 2011, section B: two observers, five classes",
        ),
        pytest.param(
            [
                [N, N, N, N, N, 3, 4, 1, 2, 1, 1, 3, 3, N, 3],
                [1, N, 2, 1, 3, 3, 4, 3, N, N, N, N, N, N, N],
                [N, N, 2, 1, 3, 4, 4, N, 2, 1, 1, 3, 3, N, 4],
            ],
            0.691,
            id="Wikipedia: three coders, most values missing",
        ),
        pytest.param(
            [[3, 3, 3, 3, 3], [3, 3, 3, 3, 3], [3, 3, N, N, 3], [3, 3, 3, 3, 1], [3, N, 3, 3, 3]],
            0.0,
            id="fast-krippendorff 11: one decision of 22 differs, which chance does as well",
        ),
        pytest.param([[1, 1, 2], [1, 1, N], [N, 1, 2]], 1.0, id="nltk 2865: a missing decision is no class"),
    ],
)
def test_alpha_of_published_examples(decisions: list[list[float]], known: float) -> None:
    e = alpha(decisions)
    assert e.value == pytest.approx(known, abs=0.0006)
    assert e.low is not None
    assert e.high is not None
    assert e.low <= e.value <= e.high
    assert e.low < e.high


def test_alpha_from_coincidences() -> None:
    """Against the definition: alpha from the matrix of coincidences, entry by entry."""
    rng = np.random.default_rng(1)
    table = rng.integers(0, 3, (5, 40)).astype(float)
    table[rng.random(table.shape) < 0.3] = N
    table[:, 0] = N
    coincidences = np.zeros((3, 3))
    for column in table.T:
        values = column[~np.isnan(column)].astype(int)
        for i, a in enumerate(values):
            for j, b in enumerate(values):
                if i != j:
                    coincidences[a, b] += 1 / (len(values) - 1)
    totals = coincidences.sum(1)
    n = totals.sum()
    expected = (n**2 - (totals**2).sum()) / (n - 1)
    assert alpha(table).value == pytest.approx(1 - (n - np.trace(coincidences)) / expected)


@pytest.mark.parametrize(
    ("decisions", "n"),
    [
        ([[0, 0, 0], [0, 0, 0]], 3),  # one class: no chance to disagree
        ([[0, 1, 0]], 0),  # a single judge
        ([[0, N, N], [N, 1, N]], 0),  # no item with two decisions
        ([[N, N], [N, N]], 0),
        ([[], []], 0),
        ([[0, 0, 1], [0, 0, N]], 2),  # the second class is on an item that one judge decided
    ],
)
def test_alpha_that_is_not_defined(decisions: list[list[float]], n: int) -> None:
    e = alpha(decisions)
    assert math.isnan(e.value)
    assert (e.low, e.high, e.n) == (None, None, n)


def test_perfect_agreement_on_few_items_is_not_certain() -> None:
    few, many = (alpha([[0, 1] * k] * 3) for k in (3, 300))
    assert few.value == many.value == 1.0
    assert few.low is not None
    assert many.low is not None
    assert few.low < 0.8 < 0.98 < many.low
    assert few.high == 1.0


def test_a_class_that_most_resamples_lack() -> None:
    """One harmful verdict among 200: a resample without it has no alpha of its own (fairlearn 1441)."""
    e = alpha([[1] + [0] * 199, [0] * 200])
    assert e.value == pytest.approx(0, abs=0.01)
    assert e.low is not None
    assert e.high is not None
    assert -1 <= e.low <= e.value <= e.high <= 1


def test_opposite_decisions_have_a_negative_alpha() -> None:
    e = alpha([[0, 1] * 20, [1, 0] * 20])
    assert e.value < -0.9
    assert e.low is not None
    assert -1 <= e.low <= e.value


def test_clusters_widen_alpha() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random(60) < 0.4
    table = np.array([np.where(rng.random(60) < 0.8, truth, ~truth) for _ in range(3)], dtype=float)
    once = alpha(table)
    again = alpha(np.tile(table, 4), [*range(60)] * 4)
    blind = alpha(np.tile(table, 4))
    widths = [e.high - e.low for e in (once, again, blind) if e.low is not None and e.high is not None]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.6 * widths[0]


@pytest.mark.parametrize(("n", "share", "agreeing", "known"), [(60, 0.4, 0.8, 0.9), (200, 0.15, 0.9, 0.7)])
def test_alphas_interval_covers(n: int, share: float, agreeing: float, known: float) -> None:
    """Three judges who each keep to the same truth with probability `agreeing`; a share `known` of decisions is made."""
    rng = np.random.default_rng(3)

    def judged(n: int) -> np.ndarray:
        truth = rng.random(n) < share
        table = np.where(rng.random((3, n)) < agreeing, truth, rng.random((3, n)) < share).astype(float)
        table[rng.random((3, n)) > known] = N
        return table

    true = alpha(judged(200_000)).value
    found = [alpha(judged(n)) for _ in range(300)]
    covered = np.mean([e.low is not None and e.high is not None and e.low <= true <= e.high for e in found])
    assert 0.92 <= covered <= 0.985
