from __future__ import annotations

import math

import pytest

from wpn_bench.core import numbers


@pytest.mark.parametrize(
    ("value", "text"), [(0.941, "94.1 %"), (0.0, "0.0 %"), (1.0, "100.0 %"), (None, "n/a"), (math.nan, "n/a")]
)
def test_percent(value: float | None, text: str) -> None:
    assert numbers.percent(value) == text


def test_differences_have_a_sign_and_zero_has_none() -> None:
    assert numbers.points(0.893) == "+89.3 points"
    assert numbers.points(-0.007) == "-0.7 points"
    assert numbers.points(-0.0001) == "0.0 points"
    assert numbers.signed_interval(-0.016, 0.002) == "[-1.6, +0.2]"


def test_an_interval_with_a_missing_end_is_empty() -> None:
    assert numbers.interval(0.1, None) == ""
    assert numbers.interval(0.902, 0.968) == "[90.2, 96.8]"


@pytest.mark.parametrize(
    ("value", "text"), [(8.24, "8.2 s"), (252, "4 min 12 s"), (3900, "1 h 05 min"), (59.99, "60.0 s")]
)
def test_seconds(value: float, text: str) -> None:
    assert numbers.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(31.44, "31.4"), (9.4e6, "9.4e+06"), (2.345, "2.35"), (12345, "12,345"), (0, "0.00")]
)
def test_plain(value: float, text: str) -> None:
    assert numbers.plain(value) == text
