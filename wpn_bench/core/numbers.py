"""How numbers are written: per cent for rates, points for differences, intervals in brackets.

Every function takes fractions (0..1) where a rate is meant and answers "n/a" for a number that is not there, so that
a hole in the results is seen as a hole and never as a zero.
"""

from __future__ import annotations

import math

MISSING = "n/a"


def is_finite(value: float | None) -> bool:
    """True for a finite number; None, NaN and infinities are not known."""
    return value is not None and math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """0.941 -> '94.1 %'."""
    return f"{100 * value:.{digits}f} %" if value is not None and is_finite(value) else MISSING


def interval(low: float | None, high: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """(0.902, 0.968) -> '[90.2, 96.8]'; an empty string where an end is not known."""
    if low is None or high is None or not (is_finite(low) and is_finite(high)):
        return ""
    return f"[{_fixed(scale * low, digits)}, {_fixed(scale * high, digits)}]"


def signed_interval(low: float | None, high: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """(-0.016, 0.002) -> '[-1.6, +0.2]'."""
    if low is None or high is None or not (is_finite(low) and is_finite(high)):
        return ""
    return f"[{signed(low, scale, digits)}, {signed(high, scale, digits)}]"


def signed(value: float | None, scale: float = 100.0, digits: int = 1) -> str:
    """A difference with its sign: 0.893 -> '+89.3' (points); what rounds to nothing has no sign."""
    if value is None or not is_finite(value):
        return MISSING
    text = _fixed(scale * value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def points(value: float | None) -> str:
    """-0.007 -> '-0.7 points'."""
    text = signed(value)
    return text if text == MISSING else f"{text} points"


def plain(value: float | None) -> str:
    """A number with three telling digits: perplexities, seconds, losses; '1.2e+09' when it left the ground."""
    if value is None or not is_finite(value):
        return MISSING
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    """Wall time as a person says it: '8.2 s', '4 min 12 s', '1 h 05 min'."""
    if value is None or not is_finite(value):
        return MISSING
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(value: float | None) -> str:
    """'p = 0.031', 'p < 0.001', or nothing."""
    if value is None or not is_finite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _fixed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
