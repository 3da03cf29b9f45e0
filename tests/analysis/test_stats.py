"""Every figure against one that was worked out another way."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from wpn_bench.analysis import stats
from wpn_bench.analysis.verdict import non_inferiority

Z = 1.959963984540054  # the 97.5 % point of the normal distribution
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(False, True)] * gained + [(True, False)] * lost + [(False, False)] * neither
    random.Random(0).shuffle(pairs)
    return [b for b, _ in pairs], [m for _, m in pairs]


# --- rates -----------------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + z²/20 ± z sqrt(0.8 * 0.2 / 10 + z²/400)) / (1 + z²/10)."""
    got = stats.rate(8, 10)
    half = Z * math.sqrt(0.016 + Z * Z / 400)
    assert got.value == 0.8
    assert got.low == pytest.approx((0.8 + Z * Z / 20 - half) / (1 + Z * Z / 10), abs=1e-12)
    assert got.high == pytest.approx((0.8 + Z * Z / 20 + half) / (1 + Z * Z / 10), abs=1e-12)
    assert (got.low, got.high) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))


def test_the_figure_of_the_protocol() -> None:
    """95.8 % of 1,000: 94.4 to 96.9."""
    got = stats.rate(958, 1000)
    assert (round(100 * got.low, 1), round(100 * got.high, 1)) == (94.4, 96.9)


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_extreme_rates_still_have_a_width(n: int) -> None:
    none, all_ = stats.rate(0, n), stats.rate(n, n)
    assert (none.low, all_.high) == (pytest.approx(0, abs=1e-12), pytest.approx(1, abs=1e-12))
    assert none.low <= none.value
    assert all_.value <= all_.high
    assert none.high == pytest.approx(1 - all_.low)
    assert none.high == pytest.approx(Z * Z / (n + Z * Z))


def test_nothing_measured_is_no_rate() -> None:
    got = stats.rate(0, 0)
    assert math.isnan(got.value)
    assert (got.low, got.high) == (None, None)


# --- paired rates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (3, 1), (9, 4), (7, 7), (20, 41)])
def test_mcnemar_is_the_two_sided_sign_test(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    got = stats.paired_rates(*outcomes(5, gained, lost, 3))
    assert got.p_value == pytest.approx(min(1.0, 2 * tail))
    assert got.value == pytest.approx((gained - lost) / (n + 8))


def bonett_price(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Bonett and Price 2012: Wald's interval after adding one item to each of the two kinds of change."""
    p12, p21 = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = p12 - p21
    variance = ((p12 + p21) - (p12 - p21) ** 2) / (n + 2)
    return max(-1.0, centre - Z * math.sqrt(variance)), min(1.0, centre + Z * math.sqrt(variance))


def test_bonett_price_by_hand() -> None:
    """3 gained, 1 lost of 20: p12 = 4/22, p21 = 2/22, variance (6/22 - 4/484) / 22 = 0.0120210..."""
    got = stats.paired_rates(*outcomes(10, 3, 1, 6))
    half = Z * math.sqrt((6 / 22 - 4 / 484) / 22)
    assert half == pytest.approx(0.2148908, abs=1e-6)
    assert (got.low, got.high) == (pytest.approx(2 / 22 - half), pytest.approx(2 / 22 + half))


@given(PAIRS)
def test_paired_intervals(pairs: list[tuple[bool, bool]]) -> None:
    base, model = [b for b, _ in pairs], [m for _, m in pairs]
    got = stats.paired_rates(base, model)
    gained, lost = sum(m > b for b, m in pairs), sum(m < b for b, m in pairs)
    low, high = bonett_price(gained, lost, len(pairs))
    assert got.low == pytest.approx(low)
    assert got.high == pytest.approx(high)
    assert got.value == pytest.approx(np.mean(model) - np.mean(base))
    assert got.low <= got.value + 1e-12
    assert got.value <= got.high + 1e-12
    turned = stats.paired_rates(model, base)
    assert turned.value == pytest.approx(-got.value)
    assert turned.low == pytest.approx(-got.high)
    assert turned.p_value == pytest.approx(got.p_value)


def test_no_change_on_many_items_is_a_narrow_interval_and_no_evidence() -> None:
    got = stats.paired_rates([True] * 1000, [True] * 1000)
    assert (got.value, got.p_value) == (0.0, 1.0)
    assert 0 < got.high < 0.005
    assert got.low == -got.high


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="same items"):
        stats.paired_rates([True, False], [True])


def test_no_pairs() -> None:
    got = stats.paired_rates([], [])
    assert math.isnan(got.value)
    assert (got.low, got.high, got.p_value) == (None, None, None)


# --- bootstrap -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_of_a_share_is_close_to_the_exact_one() -> None:
    """Resampling 70 of 100 is drawing from Binomial(100, 0.7)."""
    got = stats.mean_by_bootstrap([[1.0] * 70 + [0.0] * 30])
    exact = binom.ppf([0.025, 0.975], 100, 0.7) / 100
    assert got.value == pytest.approx(0.7)
    assert got.low == pytest.approx(exact[0], abs=0.0101)
    assert got.high == pytest.approx(exact[1], abs=0.0101)


def test_a_macro_average_weighs_tasks_and_not_documents() -> None:
    groups = [[1.0] * 900 + [0.0] * 100, [1.0] * 20 + [0.0] * 80]
    got = stats.mean_by_bootstrap(groups)
    assert got.value == pytest.approx((0.9 + 0.2) / 2)
    sd = math.sqrt(0.9 * 0.1 / 1000 + 0.2 * 0.8 / 100) / 2
    assert got.low == pytest.approx(got.value - Z * sd, abs=0.003)
    assert got.high == pytest.approx(got.value + Z * sd, abs=0.003)


def test_many_kinds_of_values_are_resampled_alike() -> None:
    """The fast way for few distinct values and the plain way agree."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=200)
    sd = values.std() / math.sqrt(200)
    for some in (values, np.where(values > 0, 1.0, -1.0) * values.std()):
        got = stats.mean_by_bootstrap([some.tolist()])
        assert got.high - got.low == pytest.approx(2 * Z * sd, rel=0.05)


def test_paired_macro_difference() -> None:
    """Nine tasks, each with its own share of changes: the variance is a ninth of the mean variance, by tasks."""
    base, model, variance = [], [], 0.0
    for k, n in enumerate([100, 150, 200, 250, 300, 350, 400, 450, 500]):
        gained, lost = 3 * k, 5 * k + 2
        b, m = outcomes(n // 2, gained, lost, n - n // 2 - gained - lost)
        base.append(b)
        model.append(m)
        variance += ((gained + lost) / n - ((gained - lost) / n) ** 2) / n / 81
    got = stats.paired_accuracies(base, model)
    expected = np.mean([np.mean(m) - np.mean(b) for b, m in zip(base, model, strict=True)])
    assert got.value == pytest.approx(expected)
    assert got.low == pytest.approx(expected - Z * math.sqrt(variance), abs=0.0012)
    assert got.high == pytest.approx(expected + Z * math.sqrt(variance), abs=0.0012)
    assert got.p_value < 0.01
    again = stats.paired_accuracies(base, model)
    assert again == got
    swapped = stats.paired_accuracies(model, base)
    assert swapped.value == pytest.approx(-got.value)
    assert swapped.low == pytest.approx(-got.high, abs=0.0012)


def test_pairing_matters() -> None:
    """The same two accuracies: changes on the same few documents tell more than changes all over."""
    base = [True] * 50 + [False] * 50
    few = [True] * 55 + [False] * 45
    turned = [False] * 45 + [True] * 5 + [True] * 50
    narrow, wide = stats.paired_accuracies([base], [few]), stats.paired_accuracies([base], [turned])
    assert narrow.value == wide.value == pytest.approx(0.05)
    assert narrow.high - narrow.low < 0.1 < 0.3 < wide.high - wide.low
    assert narrow.p_value == stats.paired_rates(base, few).p_value == pytest.approx(2 / 2**5)


def test_equal_models_have_no_difference() -> None:
    same = [[True, False] * 20, [True] * 30]
    got = stats.paired_accuracies(same, same)
    assert (got.value, got.p_value) == (0.0, 1.0)
    assert got.low is not None
    assert got.high is not None
    assert got.low < 0 < got.high


def test_few_unchanged_documents_do_not_rule_out_a_loss() -> None:
    few, many = [[True] * 6] * 9, [[True] * 200] * 9
    short, long = stats.paired_accuracies(few, few), stats.paired_accuracies(many, many)
    assert non_inferiority(short.low, short.high, 0.02) == "inconclusive"
    assert non_inferiority(long.low, long.high, 0.02) == "pass"


def test_a_ratio_is_weighted_and_its_interval_that_of_the_delta_method() -> None:
    rng = np.random.default_rng(2)
    weights = rng.integers(50, 100, size=300).astype(float)
    sums = weights * rng.normal(3.0, 0.4, size=300)
    got = stats.ratio(sums.tolist(), weights.tolist())
    value = sums.sum() / weights.sum()
    sd = math.sqrt(np.sum((sums - value * weights) ** 2)) / weights.sum()
    assert got.value == pytest.approx(value)
    assert got.low == pytest.approx(value - Z * sd, abs=0.15 * sd)
    assert got.high == pytest.approx(value + Z * sd, abs=0.15 * sd)
    shifted = stats.paired_ratio(sums.tolist(), (sums + 0.1 * weights).tolist(), weights.tolist())
    assert shifted.value == pytest.approx(0.1)
    assert (shifted.low, shifted.high) == (pytest.approx(0.1), pytest.approx(0.1))  # every window moved alike


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_an_interval_over_seeds_by_hand() -> None:
    """Spread 0.02, three seeds: t(2) = 4.302653, half width 4.302653 * 0.02 / sqrt(3)."""
    got = stats.over_seeds([0.90, 0.92, 0.94])
    half = 4.302652730 * 0.02 / math.sqrt(3)
    assert got.value == pytest.approx(0.92)
    assert (got.low, got.high) == (pytest.approx(0.92 - half), pytest.approx(0.92 + half))
    assert stats.over_seeds([0.90, 0.92, 0.94], 0.9, 0.95) == stats.Estimate(got.value, 0.9, 0.95)


def test_one_seed_has_no_spread() -> None:
    assert stats.over_seeds([0.9]) == stats.Estimate(0.9, None, None)
    assert stats.over_seeds_p([0.9]) is None


def test_p_over_seeds() -> None:
    """Mean 0.02, spread 0.01, three seeds: t = 3.4641 with two degrees of freedom, p = 0.0742 (two-sided).

    For two degrees of freedom P(|T| > t) = 1 - t / sqrt(t² + 2).
    """
    t = 0.02 / (0.01 / math.sqrt(3))
    assert stats.over_seeds_p([0.01, 0.02, 0.03]) == pytest.approx(1 - t / math.sqrt(t * t + 2))


@pytest.mark.parametrize("delta", [0.0, 0.1, -0.3, 1 / 3])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_seeds_that_agree_exactly_give_no_test(delta: float, n: int) -> None:
    """No spread is no infinite evidence, also where the mean of equal numbers is off by a last digit."""
    assert stats.over_seeds_p([delta] * n) is None


# --- Holm, non-inferiority -------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.03, 0.04: times 3, 2, 1, and never below the one before."""
    assert stats.holm([0.01, 0.04, None, 0.03]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        None,
        pytest.approx(0.06),
    ]
    assert stats.holm([0.5, 0.9]) == [pytest.approx(1.0), pytest.approx(1.0)]
    assert stats.holm([None, None]) == [None, None]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.04]), min_size=1, max_size=12))
def test_holm_against_statsmodels(p_values: list[float]) -> None:
    from statsmodels.stats.multitest import multipletests

    assert stats.holm(p_values) == multipletests(p_values, method="holm")[1].tolist()


# --- judges ----------------------------------------------------------------------------------------------------------


def test_auc_by_hand_and_against_sklearn() -> None:
    from sklearn.metrics import roc_auc_score

    assert stats.auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).value == 0.75
    assert stats.auc([0.5, 0.5], [False, True]).value == 0.5
    perfect = stats.auc([0.1, 0.2, 0.8, 0.9], [False, False, True, True])
    assert (perfect.value, perfect.low, perfect.high) == (1.0, None, None)
    assert math.isnan(stats.auc([0.1], [True]).value)
    rng = np.random.default_rng(1)
    labels = rng.random(400) < 0.3
    scores = np.round(rng.normal(labels * 1.2, 1.0), 1)  # with ties
    e = stats.auc(scores.tolist(), labels.tolist())
    assert e.value == pytest.approx(roc_auc_score(labels, scores))
    assert e.low is not None
    assert e.high is not None
    resampled = [rng.integers(0, 400, 400) for _ in range(250)]
    low, high = np.quantile([roc_auc_score(labels[i], scores[i]) for i in resampled], [0.025, 0.975])
    assert (e.low, e.high) == pytest.approx((low, high), abs=0.015)


def test_delongs_interval_covers() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(2)
    true = float(norm.cdf(2.0 / math.sqrt(2)))
    covered = 0
    for _ in range(500):
        labels = [True] * 40 + [False] * 60
        e = stats.auc(rng.normal(np.where(labels, 2.0, 0.0)).tolist(), labels)
        covered += e.low is not None and e.high is not None and e.low <= true <= e.high
    assert covered >= 0.925 * 500


def test_seeds_apart_is_welchs_test() -> None:
    """By hand: variances 1 and 4, three seeds each, so se = sqrt(5/3) and 50/17 degrees of freedom."""
    from scipy.stats import t

    found = stats.seeds_apart([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    se, df = math.sqrt(5 / 3), 50 / 17
    assert found.value == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0 - t.ppf(0.975, df) * se)
    assert found.high == pytest.approx(2.0 + t.ppf(0.975, df) * se)
    assert found.p_value == pytest.approx(2 * t.sf(2.0 / se, df))


@pytest.mark.parametrize(("first", "second"), [([0.5], [0.4, 0.6]), ([0.5, 0.5], [0.7, 0.7])])
def test_seeds_apart_without_a_test(first: list[float], second: list[float]) -> None:
    found = stats.seeds_apart(first, second)
    assert (found.low, found.high, found.p_value) == (None, None, None)
    assert found.value == pytest.approx(sum(second) / len(second) - sum(first) / len(first))
