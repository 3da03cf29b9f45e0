"""What the report's figures share: colours, markers, error bars, texts that are safe in Plotly, and the JSON of a figure.

Only what carries meaning is coloured, in tones that are legible on white and on black. The page draws the figures with its
own ink, grid and font (`report.js`), so that they follow the reader's light or dark scheme.
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
# After Okabe & Ito (2008), told apart by colour-blind readers; base is grey, the primary method always the blue.
COLOURS = ("#2b7fc3", "#d9622b", "#d19a15", "#1f9e77", "#a566b8", "#c4527e", "#6c7fd8", "#7a9a2e", "#a0764e", "#3aa7b5")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon", "star", "triangle-down", "cross", "x")


def colours(view: View) -> dict[str, str]:
    """Model -> colour, the same in every figure and in the tables."""
    methods = sorted(
        (name for name in view.models if name != BASE and name not in view.varieties),
        key=lambda name: name != view.primary(),
    )
    return {BASE: GREY} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(methods)}


def symbols(view: View) -> dict[str, str]:
    """Model -> marker, so that colour is never the only sign."""
    return {name: SYMBOLS[i % len(SYMBOLS)] for i, name in enumerate(colours(view))}


def plotly_text(raw: str) -> str:
    """Plotly reads a little HTML in its texts (links too), and %{...} in what it shows beside the pointer: nothing that
    a run brings may be taken for either."""
    return html.escape(raw, quote=False).replace("%{", "%&#123;")


def shortened(title: str, limit: int = 28) -> str:
    return title if len(title) <= limit else f"{title[: limit - 1].rstrip()}…"


def change_text(cell: Cell) -> str:
    return f"{points(cell.delta)} {signed_interval(cell.delta_ci_low, cell.delta_ci_high)}".strip()


def error_bar(middle: float | None, low: float | None, high: float | None, colour: str) -> Figure | None:
    """An interval (fractions) as Plotly's error bar in per cent, or None where it is not known."""
    return (
        error_bars([(middle, low, high)], colour)
        if middle is not None and low is not None and high is not None
        else None
    )


def error_bars(intervals: Sequence[tuple[float | None, float | None, float | None]], colour: str) -> Figure:
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
    """Plain lists and numbers; the page has its own template, so Plotly's (7 kB a figure) is left out."""
    import json

    figure.update_layout(template="none")
    drawn: Figure = json.loads(figure.to_json(engine="json"))
    drawn["layout"].pop("template", None)
    return {"data": drawn["data"], "layout": drawn["layout"]}
