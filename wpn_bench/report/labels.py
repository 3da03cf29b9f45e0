"""Names beside the points of a chart: placed so that none lies on another, on a marker or on a bar.

Boxes are reckoned in the pixels that the plot has on a wide screen; narrow ones get a legend instead. A label goes
beside its point where there is room, else farther off on a thin leader; where nothing is free, beside it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 1046.0, 382.0  # of the plotting area of `charts.trade_off` in a page of 1,180 pixels
LETTER = 7.4  # mean width of a letter at 13 pixels


class Bar(NamedTuple):
    """A point and the ends of its two interval bars, in the units of the axes."""

    x: float
    y: float
    left: float
    right: float
    low: float
    high: float


def placed(
    labels: Sequence[tuple[str, str]],
    bars: Sequence[Bar],
    marks: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, float, float]],
    span: tuple[float, float],
) -> list[dict[str, Any]]:
    """Plotly annotations that name the points of `bars`, one a label (text, colour). The texts are not escaped.

    `marks` are the markers to keep clear of, `lines` the upright lines (x, bottom, top), `span` the range of the x
    axis; all in the units of the axes, y running from -4 to 105. Each annotation has its `color` beside Plotly's keys.
    """
    across, up = WIDTH / (span[1] - span[0]), HEIGHT / 109

    def pixel(x: float, y: float) -> tuple[float, float]:
        return (x - span[0]) * across, (y + 4) * up

    def upright(x: float, low: float, high: float) -> tuple[float, float, float, float]:
        (px, bottom), top = pixel(x, low), pixel(x, high)[1]
        return px - 4, bottom, px + 4, top

    taken: list[tuple[float, ...]] = [(px - 9, py - 9, px + 9, py + 9) for px, py in (pixel(x, y) for x, y in marks)]
    for _, y, left, right, _, _ in bars:
        taken.append((*pixel(left, y - 1), *pixel(right, y + 1)))
    taken += [upright(bar.x, bar.low, bar.high) for bar in bars]
    crossed = [upright(*line) for line in lines]
    placed = []
    for (title, ink), (x, y, *_) in zip(labels, bars, strict=True):
        px, py = pixel(x, y)
        half = LETTER * len(title) / 2 + 3

        def box(dx: float, dy: float, px: float = px, py: float = py, half: float = half) -> tuple[float, ...]:
            return px + dx - half, py + dy - 9, px + dx + half, py + dy + 9

        near = [(side * (half + 10), rise) for rise in (15, -15, 0) for side in (1, -1)] + [(0, 22), (0, -22)]
        far = [(side * (half + out), rise) for out in (26, 60, 120) for rise in (-34, 34, -62, 62) for side in (1, -1)]
        # Better across a thin line and beside the point than clear of it and far away.
        tries = [(near, taken + crossed), (near, taken), (far, taken + crossed), (far, taken)]
        dx, dy = next((place for places, full in tries for place in places if _free(box(*place), full)), near[0])
        leader = (dx, dy) in far
        taken.append(box(dx, dy))
        # With a leader the text is anchored at its near end, so that the line meets it and not its middle.
        side = "left" if dx > 0 else "right"
        where = (
            {
                "showarrow": True,
                "arrowhead": 0,
                "arrowwidth": 1,
                "arrowcolor": ink,
                "standoff": 8,
                "xanchor": side,
                "ax": dx - half * (1 if dx > 0 else -1),
                "ay": -dy,
            }
            if leader
            else {"showarrow": False, "xanchor": "center", "xshift": dx, "yshift": dy}
        )
        placed.append({"x": x, "y": y, "text": title, "color": ink, "yanchor": "middle", **where})
    return placed


def _free(box: tuple[float, ...], taken: Sequence[tuple[float, ...]]) -> bool:
    if box[0] < 0 or box[2] > WIDTH or box[1] < 0 or box[3] > HEIGHT:
        return False
    return all(box[2] < other[0] or box[0] > other[2] or box[3] < other[1] or box[1] > other[3] for other in taken)
