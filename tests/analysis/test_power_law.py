"""The power law of Best-of-N: the fit, and where it does not hold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wpn_bench.analysis.power_law import PowerLaw, fit, forecast

NS = [1, 2, 4, 8, 16, 32, 64]


def test_a_fit_finds_the_law_that_made_the_rates() -> None:
    law = fit(NS, [PowerLaw(2.0, 0.4).rate(n) for n in NS])
    assert law is not None
    assert (law.a, law.b) == (pytest.approx(2.0), pytest.approx(0.4))


def test_rates_of_0_and_1_are_left_out_and_two_rates_are_too_few() -> None:
    law = PowerLaw(2.0, 0.4)
    rates = [0.0, *(law.rate(n) for n in NS[1:4]), 1.0, 1.0, 1.0]
    found = fit(NS, rates)
    assert found is not None
    assert found.b == pytest.approx(0.4)
    assert fit(NS, [0.0] * 7) is None
    assert fit(NS, [1.0] * 7) is None
    assert fit(NS[:2], [0.1, 0.2]) is None


def chances(rates: list[float], n: int = 60) -> np.ndarray:
    """Return the chance of a success by N for prompts that each succumb to a version with probability 0 or `rates`."""
    return np.array([[1 - (1 - p) ** k for k in NS] for p in rates] * (n // len(rates)))


def test_a_forecast_is_compared_with_the_rate_at_the_largest_n() -> None:
    values = np.array([[PowerLaw(2.0, 0.4).rate(n) for n in NS]] * 50)
    found = forecast(NS, values)
    assert found is not None
    assert found.fitted == 16
    assert found.predicted.value == pytest.approx(values[0, -1])
    assert found.error.value == pytest.approx(0, abs=1e-12)


def test_a_law_is_contradicted_where_most_prompts_never_succumb() -> None:
    found = forecast(NS, chances([0.0, 0.0, 0.3]))
    assert found is not None
    assert found.error.value > 0.05
    assert found.error.low is not None
    assert found.error.low > 0


@pytest.mark.parametrize(
    ("ns", "values"),
    [
        (NS, np.zeros((20, 7))),
        (NS, np.ones((20, 7))),
        (NS, np.empty((0, 7))),
        (NS[:4], np.full((20, 4), 0.5)),
        ([64], np.full((20, 1), 0.5)),
    ],
)
def test_where_no_law_can_be_fitted(ns: list[int], values: np.ndarray) -> None:
    assert forecast(ns, values) is None


def test_a_single_prompt_has_no_interval() -> None:
    found = forecast(NS, chances([0.1], 1))
    assert found is not None
    assert found.b.low is None
    assert not math.isnan(found.error.value)


def test_there_is_no_interval_if_many_resamples_have_no_fit() -> None:
    """One prompt of 30 succumbs, and a third of the resamples do not contain it."""
    found = forecast(NS, chances([0.05] + [0.0] * 29, 30))
    assert found is not None
    assert (found.error.low, found.error.high) == (None, None)
