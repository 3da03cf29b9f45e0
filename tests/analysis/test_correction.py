"""Rates corrected for the errors of a judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.analysis.correction import Errors, Stratum, corrected_rate, errors_from_labels, stratified_rate
from wpn_bench.analysis.stats import Estimate, rate

REPETITIONS = 1000


def covers(e: Estimate, true: float) -> bool:
    """Whether the interval contains the true rate."""
    return e.low is not None and e.high is not None and e.low <= true <= e.high


def test_by_hand() -> None:
    """Of 100 with a tenth harmful a judge of Se .9, Sp .8 calls .1 * .9 + .9 * .2 = .27 harmful."""
    e = corrected_rate(0.27, 100, Errors((90, 100), (80, 100)))
    assert e.value == pytest.approx(0.1)
    assert not e.cut
    # p' = 0.27851, Se' = 91/102, Sp' = 81/102, pi' = 0.10583; shift -0.01024, half-width 0.16224; cut at 0.
    assert (e.low, e.high) == (0.0, pytest.approx(0.10583 - 0.01024 + 0.16224, abs=2e-5))
    wide = corrected_rate(0.27, 100, Errors((9, 10), (8, 10)))
    assert wide.high is not None
    assert e.high is not None
    assert wide.high > e.high  # a card of twenty texts says less


def test_at_its_ends() -> None:
    under = corrected_rate(0.02, 200, Errors((90, 100), (95, 100)))
    assert (under.value, under.low, under.cut) == (0.0, 0.0, True)
    over = corrected_rate(0.99, 200, Errors((90, 100), (95, 100)))
    assert (over.value, over.high, over.cut) == (1.0, 1.0, True)
    for useless in ((50, 100), (30, 100)):
        e = corrected_rate(0.3, 100, Errors(useless, (50, 100)))
        assert math.isnan(e.value)
        assert (e.low, e.high) == (None, None)
    assert math.isnan(corrected_rate(0.3, 0, Errors((9, 10), (9, 10))).value)


@given(
    st.floats(0, 1), st.integers(1, 500), st.integers(1, 300), st.integers(1, 300), st.floats(0.5, 1), st.floats(0.5, 1)
)
def test_a_corrected_share_is_a_share_inside_its_interval(
    share: float, n: int, m: int, k: int, se: float, sp: float
) -> None:
    e = corrected_rate(share, n, Errors((round(se * m), m), (round(sp * k), k)))
    if not math.isnan(e.value):
        assert e.low is not None
        assert e.high is not None
        assert 0 <= e.low <= e.value <= e.high <= 1


@given(st.integers(0, 80), st.integers(50, 400))
def test_a_perfect_judge_with_a_large_card_changes_nothing(k: int, n: int) -> None:
    share = min(k, n) / n
    e = corrected_rate(share, n, Errors((10**7, 10**7), (10**7, 10**7)))
    assert e.value == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "sensitivity", "specificity"),
    [(0.5, (0, 0), (9, 10)), (0.5, (9, 10), (0, 0)), (math.nan, (9, 10), (9, 10))],
)
def test_what_was_not_measured_corrects_nothing(
    share: float, sensitivity: tuple[int, int], specificity: tuple[int, int]
) -> None:
    e = corrected_rate(share, 100, Errors(sensitivity, specificity))
    assert math.isnan(e.value)
    assert (e.low, e.high, e.cut) == (None, None, False)


@pytest.mark.parametrize("share", [1.2, -0.1, math.inf])
def test_no_proportion_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        corrected_rate(share, 100, Errors((9, 10), (9, 10)))


@pytest.mark.parametrize("counts", [(11, 10), (-1, 10), (math.nan, 10)])
def test_a_judge_cannot_be_right_more_often_than_it_was_asked(counts: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="more often"):
        Errors(counts, (9, 10))


@pytest.mark.parametrize(
    ("true", "n", "se", "m", "sp", "k"),
    [
        (0.05, 200, 0.9, 500, 0.95, 800),
        (0.5, 100, 0.7, 50, 0.8, 60),
        (0.9, 200, 0.8, 100, 0.9, 100),
        (0.02, 500, 0.94, 1900, 0.95, 2086),
    ],
)
def test_the_interval_covers(true: float, n: int, se: float, m: int, sp: float, k: int) -> None:
    rng = np.random.default_rng(3)
    right, clear = rng.binomial(m, se, REPETITIONS), rng.binomial(k, sp, REPETITIONS)
    called = rng.binomial(n, true * se + (1 - true) * (1 - sp), REPETITIONS)
    covered = sum(
        covers(corrected_rate(x / n, n, Errors((r, m), (c, k))), true)
        for r, c, x in zip(right.tolist(), clear.tolist(), called.tolist(), strict=True)
    )
    assert 0.93 <= covered / REPETITIONS <= 0.97


def draw(
    rng: np.random.Generator, n: int, shares: list[float], harmful: list[float], labels: list[int]
) -> list[Stratum]:
    """The strata of `n` random answers, with labels drawn at random in each."""
    found = []
    for size, rate_, wanted in zip(rng.multinomial(n, shares), harmful, labels, strict=True):
        bad, labelled = rng.binomial(size, rate_), min(wanted, size)
        found.append(Stratum(int(size), int(labelled), int(rng.hypergeometric(bad, size - bad, labelled))))
    return found


@pytest.mark.parametrize(
    ("n", "shares", "harmful", "labels"),
    [
        (500, [0.85, 0.05, 0.05, 0.05], [0.02, 0.2, 0.6, 0.9], [26, 8, 8, 8]),
        (500, [0.9, 0.05, 0.03, 0.02], [0.005, 0.1, 0.4, 0.8], [20, 10, 10, 10]),
        (300, [0.02, 0.05, 0.1, 0.83], [0.3, 0.6, 0.8, 0.97], [5, 10, 15, 20]),
        (400, [0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3], [20, 10, 10, 10]),  # the score says nothing
        (500, [0.2] * 5, [0.05] * 5, [20] * 5),  # few labels are harmful
        (100, [0.2] * 5, [0.01, 0.1, 0.2, 0.3, 0.6], [100] * 5),  # all are labelled
    ],
)
def test_the_interval_of_strata_covers(n: int, shares: list[float], harmful: list[float], labels: list[int]) -> None:
    rng = np.random.default_rng(4)
    true = float(np.dot(shares, harmful))
    found = [stratified_rate(draw(rng, n, shares, harmful, labels), 1000) for _ in range(REPETITIONS)]
    covered = np.mean([covers(e, true) for e in found])
    assert np.mean([e.value for e in found]) == pytest.approx(true, abs=0.01)
    assert 0.93 <= covered <= 0.97


def test_strata_by_hand() -> None:
    """80 answers, 1 of 10 labels harmful, and 20 answers, 4 of 5 labels harmful: .8 * .1 + .2 * .8 = .24."""
    e = stratified_rate([Stratum(80, 10, 1), Stratum(20, 5, 4), Stratum(0, 0, 0)])
    assert e.value == pytest.approx(0.24)
    assert covers(e, 0.24)
    assert stratified_rate([Stratum(80, 10, 1), Stratum(20, 5, 4)]) == e


def test_all_labelled_is_a_plain_rate() -> None:
    e, known = stratified_rate([Stratum(60, 60, 3), Stratum(40, 40, 30)]), rate(33, 100)
    assert e.value == pytest.approx(0.33)
    assert (e.low, e.high) == pytest.approx((known.low, known.high), abs=0.01)


@pytest.mark.parametrize("strata", [[], [Stratum(0, 0, 0)], [Stratum(10, 0, 0)], [Stratum(10, 5, 2), Stratum(3, 0, 0)]])
def test_without_labels_nothing_is_estimated(strata: list[Stratum]) -> None:
    e = stratified_rate(strata)
    assert math.isnan(e.value)
    assert (e.low, e.high) == (None, None)


@pytest.mark.parametrize("harmful", [0, 1])
def test_a_stratum_with_one_label_divides_by_nothing(harmful: int) -> None:
    e = stratified_rate([Stratum(100, 1, harmful), Stratum(10, 5, 2)])
    assert e.low is not None
    assert e.high is not None
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert e.high - e.low > 0.3


@pytest.mark.parametrize("harmful", [0, 1])
def test_labels_of_one_kind_still_have_a_width(harmful: int) -> None:
    e = stratified_rate([Stratum(200, 10, 10 * harmful), Stratum(100, 10, 10 * harmful)])
    assert e.value == harmful
    assert e.low is not None
    assert e.high is not None
    assert 0.03 < e.high - e.low < 0.2
    assert 0 <= e.low <= e.high <= 1


@pytest.mark.parametrize("counts", [(5, 6, 1), (5, 4, 5), (5, 4, -1)])
def test_a_stratum_with_more_labels_than_answers_is_an_error(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="harmful <= labelled <= size"):
        Stratum(*counts)


def test_errors_from_labels_by_hand() -> None:
    """All labelled: 8 of 12 harmful answers are called harmful, and 18 of 22 harmless ones are not."""
    errors = errors_from_labels([Stratum(12, 12, 8, called=True), Stratum(22, 22, 4, called=False)])
    assert errors.sensitivity == pytest.approx((8, 12), rel=0.05)
    assert errors.specificity == pytest.approx((18, 22), rel=0.05)
    assert errors.covariance == 0


def test_labels_count_as_often_as_they_stand_for_answers() -> None:
    """1 of 10 labels among 1000 uncalled answers stands for 100 harmful ones; 10 of 10 among 50 called ones for 50."""
    strata = [Stratum(50, 10, 10, called=True), Stratum(1000, 10, 1, called=False)]
    errors = errors_from_labels(strata)
    se, sp = errors.sensitivity, errors.specificity
    assert se[0] / se[1] == pytest.approx(50 / 150)
    assert sp[0] / sp[1] == pytest.approx(1)
    assert se[1] < 11
    assert errors.covariance > 0
    # On the answers that the labels are from, both corrections estimate the same rate.
    assert corrected_rate(50 / 1050, 1050, errors).value == pytest.approx(stratified_rate(strata).value)


@pytest.mark.parametrize(
    ("strata", "known"),
    [
        ([Stratum(10, 5, 0, called=True), Stratum(10, 5, 0, called=False)], (False, True)),
        ([Stratum(10, 5, 5, called=True), Stratum(10, 5, 5, called=False)], (True, False)),
        ([Stratum(10, 0, 0, called=True), Stratum(10, 5, 1, called=False)], (False, False)),
        ([], (False, False)),
    ],
)
def test_errors_of_which_nothing_is_known(strata: list[Stratum], known: tuple[bool, bool]) -> None:
    errors = errors_from_labels(strata)
    assert (errors.sensitivity[1] > 0, errors.specificity[1] > 0) == known
    assert math.isnan(corrected_rate(0.5, 20, errors).value)


@pytest.mark.parametrize(("model", "prevalence"), [(0, 0.6), (1, 0.3), (2, 0.05)])
def test_labels_of_all_models_correct_the_rate_of_one(model: int, prevalence: float) -> None:
    """50 labels of 900 answers by three models. The answers of one model are among those, so the interval is cautious."""
    rng = np.random.default_rng(5)
    by_truth = np.array([[0.8, 0.15, 0.04, 0.01], [0.02, 0.03, 0.15, 0.8]])  # scores of harmless and harmful answers
    covered = 0
    for _ in range(REPETITIONS):
        harmful = rng.binomial(300, [0.6, 0.3, 0.05])
        counts = np.array([rng.multinomial([300 - k, k], by_truth) for k in harmful])  # (models, truth, strata)
        sizes, bad, labels = counts.sum((0, 1)), counts[:, 1].sum(0), np.minimum([13, 13, 12, 12], counts.sum((0, 1)))
        found = rng.hypergeometric(bad, sizes - bad, labels)
        rows = zip(sizes, labels, found, (False, False, True, True), strict=True)
        errors = errors_from_labels([Stratum(int(s), int(n), int(x), called) for s, n, x, called in rows])
        covered += covers(corrected_rate(counts[model, :, 2:].sum() / 300, 300, errors), prevalence)
    assert 0.95 <= covered / REPETITIONS <= 0.995


def test_strata_of_both_verdicts_say_nothing_about_errors() -> None:
    with pytest.raises(ValueError, match="both verdicts"):
        errors_from_labels([Stratum(10, 5, 2)])
