"""Format numbers: rates in per cent, differences in percentage points, and intervals in brackets.

Rates are fractions from 0 to 1. A missing number is formatted as "n/a", so that it is never mistaken for a zero.
"""

from __future__ import annotations

import math

MISSING = "n/a"


def is_finite(value: float | None) -> bool:
    """Return True for a finite number, and False for None, NaN and infinities."""
    return value is not None and math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a rate as per cent: 0.941 -> '94.1 %'.

    Args:
        value: The rate, from 0 to 1.
        digits: Digits after the decimal point.

    Returns:
        The text; "n/a" for a missing value.
    """
    return f"{100 * value:.{digits}f} %" if value is not None and is_finite(value) else MISSING


def interval(low: float | None, high: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """Format an interval: (0.902, 0.968) -> '[90.2, 96.8]'.

    Args:
        low: Lower end.
        high: Upper end.
        scale: Factor applied to both ends; 100 turns fractions into per cent.
        digits: Number of digits after the decimal point.

    Returns:
        The text; an empty string if an end is missing.
    """
    if low is None or high is None or not (is_finite(low) and is_finite(high)):
        return ""
    return f"[{_fixed(scale * low, digits)}, {_fixed(scale * high, digits)}]"


def signed_interval(low: float | None, high: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """Format an interval of differences, with signs: (-0.016, 0.002) -> '[-1.6, +0.2]'.

    Args:
        low: Lower end.
        high: Upper end.
        scale: Factor applied to both ends; 100 turns fractions into percentage points.
        digits: Digits after the decimal point.

    Returns:
        The text; empty if an end is missing.
    """
    if low is None or high is None or not (is_finite(low) and is_finite(high)):
        return ""
    return f"[{signed(low, scale, digits)}, {signed(high, scale, digits)}]"


def signed(value: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """Format a difference with its sign: 0.893 -> '+89.3'. A value that rounds to zero has no sign.

    Args:
        value: The difference.
        scale: Factor applied to it; 100 turns fractions into percentage points.
        digits: Digits after the decimal point.

    Returns:
        The text; "n/a" for a missing value.
    """
    if value is None or not is_finite(value):
        return MISSING
    text = _fixed(scale * value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def points(value: float | None) -> str:
    """Format a difference of rates in percentage points: -0.007 -> '-0.7 points'."""
    text = signed(value)
    return text if text == MISSING else f"{text} points"


def plain(value: float | None) -> str:
    """Format a number with about three significant digits. Very large and very small numbers look like '1.2e+09'."""
    if value is None or not is_finite(value):
        return MISSING
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    """Format a duration in seconds: '8.2 s', '4 min 12 s', '1 h 05 min'."""
    if value is None or not is_finite(value):
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(value: float | None) -> str:
    """Format a p-value: 'p = 0.031' or 'p < 0.001'. A missing value gives an empty string."""
    if value is None or not is_finite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
