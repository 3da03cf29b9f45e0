"""Place the labels of points in a chart so that they do not overlap each other, a marker or an error bar.

Boxes are computed in pixels of the plot on a wide screen. Narrow screens show a legend instead. A label is placed next
to its point if there is space, and otherwise farther away with a thin line to the point. If no place is free, it is
placed next to its point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 1046.0, 382.0  # pixels of the plotting area of `charts.trade_off` in a page of 1,180 pixels
LETTER = 7.4  # mean width of a letter in pixels, for a font size of 13 pixels


class Bar(NamedTuple):
    """A point and the ends of its two error bars, in the units of the axes."""

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
    """Place a label for each point.

    Positions are in the units of the axes. The y axis runs from -4 to 105.

    Args:
        labels: (text, colour) of each label. The texts are not escaped.
        bars: The point of each label, with its error bars.
        marks: (x, y) of the markers that labels must not cover.
        lines: (x, bottom, top) of vertical lines that labels should not cover.
        span: Range of the x axis.

    Returns:
        A Plotly annotation for each label, with the additional key `color`.
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
        # A place next to the point is better than a free place far away, even if it crosses a thin line.
        tries = [(near, taken + crossed), (near, taken), (far, taken + crossed), (far, taken)]
        dx, dy = next((place for places, full in tries for place in places if _free(box(*place), full)), near[0])
        leader = (dx, dy) in far
        taken.append(box(dx, dy))
        # With a leader line, the text is anchored at its near end, so that the line ends there and not at its centre.
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
