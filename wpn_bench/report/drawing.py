"""Helpers for the charts: colours, markers, error bars, escaped texts, and the JSON of a figure.

Only data have colours, in tones that are legible on white and on black. `report.js` sets the colour of text, grid and
font, so that charts follow the reader's light or dark scheme.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from wpn_bench.core.numbers import points, signed_interval
from wpn_bench.runs.files import BASE
from wpn_bench.runs.view import Cell, View

Figure = dict[str, Any]
GREY = "#808994"
# Colour-blind readers can distinguish these colours (after Okabe & Ito 2008). Base is grey, and the primary method is blue.
COLOURS = ("#2b7fc3", "#d9622b", "#d19a15", "#1f9e77", "#a566b8", "#c4527e", "#6c7fd8", "#7a9a2e", "#a0764e", "#3aa7b5")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon", "star", "triangle-down", "cross", "x")


def colours(view: View) -> dict[str, str]:
    """Return the colour of each model in all charts and tables."""
    methods = sorted(
        (name for name in view.models if name != BASE and name not in view.varieties),
        key=lambda name: name != view.primary(),
    )
    return {BASE: GREY} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}


def symbols(view: View) -> dict[str, str]:
    """Return the marker of each model, because colour alone does not identify a model for all readers."""
    return {name: SYMBOLS[i % len(SYMBOLS)] for i, name in enumerate(colours(view))}


def plotly_text(raw: str) -> str:
    """Escape a text from a run for Plotly.

    Plotly interprets some HTML in texts, including links, and %{...} in hover texts.
    """
    return html.escape(raw, quote=False).replace("%{", "%&#123;")


def shortened(title: str, limit: int = 28) -> str:
    """Truncate a title.

    Args:
        title: The title.
        limit: Maximum number of characters.

    Returns:
        The title. If it was truncated, it ends with an ellipsis.
    """
    return title if len(title) <= limit else f"{title[: limit - 1].rstrip()}…"


def change_text(cell: Cell) -> str:
    """Return the change of a cell in percentage points, with its interval."""
    return f"{points(cell.delta)} {signed_interval(cell.delta_ci_low, cell.delta_ci_high)}".strip()


def error_bar(middle: float | None, low: float | None, high: float | None, colour: str) -> Figure | None:
    """Plotly's error bar in per cent for one interval.

    Args:
        middle: The value, a proportion.
        low: Lower end of its interval.
        high: Upper end.
        colour: The colour of the bar.

    Returns:
        The error bar; None if a number is not known.
    """
    return (
        error_bars([(middle, low, high)], colour)
        if middle is not None and low is not None and high is not None
        else None
    )


def error_bars(intervals: Sequence[tuple[float | None, float | None, float | None]], colour: str) -> Figure:
    """Plotly's error bars in per cent for the points of one trace.

    Args:
        intervals: (value, low, high) of each point, as proportions; an unknown end gives length 0.
        colour: The colour of the bars.

    Returns:
        The error bars.
    """
    above = [0.0 if m is None or high is None else max(0.0, 100 * (high - m)) for m, _, high in intervals]
    below = [0.0 if m is None or low is None else max(0.0, 100 * (m - low)) for m, low, _ in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "color": colour,
        "thickness": 1.4,
        "width": 4,
    }


def vertical_line(figure: Any, *, x: float, dash: str, text: str = "") -> None:
    """Draw a vertical line over the whole height of a figure.

    Args:
        figure: The Plotly figure.
        x: Its position.
        dash: Its style, as in Plotly.
        text: A label above the line.
    """
    figure.add_shape(
        type="line",
        x0=x,
        x1=x,
        yref="paper",
        y0=0,
        y1=1,
        line={"color": GREY, "width": 1.2, "dash": dash},
        layer="below",
    )
    if text:
        figure.add_annotation(
            x=x, y=1, yref="paper", yanchor="bottom", text=text, showarrow=False, font={"size": 12, "color": GREY}
        )


def as_json(figure: Any) -> Figure:
    """Return a figure as plain lists and numbers, without Plotly's template (7 kB), because the page has its own."""
    import json

    figure.update_layout(template="none")
    drawn: Figure = json.loads(figure.to_json(engine="json"))
    drawn["layout"].pop("template", None)
    return {"data": drawn["data"], "layout": drawn["layout"]}
