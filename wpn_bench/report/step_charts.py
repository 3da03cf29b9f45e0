"""Charts over steps: the training loss, rates during training, relearning, and rates by another number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from wpn_bench.report.drawing import (
    COLOURS,
    GREY,
    Figure,
    as_json,
    colours,
    error_bars,
    plotly_text,
    shortened,
    symbols,
)
from wpn_bench.runs.metrics import COHERENT_HARMLESS_RATE, HARMLESS_RATE, MACRO_ACCURACY, metric_of
from wpn_bench.runs.view import View

HISTORY_POINTS = 400  # longer loss curves are reduced to about this many points


def losses(view: View) -> dict[str, Figure]:
    """Return the chart of each model's training loss by step.

    There is one line per seed. Thin lines are the terms of the loss for the first seed.
    """
    import plotly.graph_objects as go

    tint, drawn = colours(view), {}
    for name, model in view.models.items():
        if name in view.varieties:
            continue
        history = [point for point in model.get("history") or [] if point.get("loss") is not None]
        if not history:
            continue
        figure = go.Figure()
        by_seed: dict[Any, list[dict[str, Any]]] = {}
        for point in history:
            by_seed.setdefault(point.get("seed"), []).append(point)
        for i, (seed, all_points) in enumerate(by_seed.items()):
            curve = _thin(all_points)
            if i == 0:
                parts = [part for part in (curve[0].get("parts") or {}) if len(curve[0]["parts"]) > 1]
                for j, part in enumerate(parts):
                    figure.add_trace(
                        go.Scatter(
                            x=[point["step"] for point in curve],
                            y=[(point.get("parts") or {}).get(part) for point in curve],
                            mode="lines",
                            name=plotly_text(part),
                            opacity=0.9,
                            line={"width": 1.2, "color": GREY, "dash": ("dot", "dash", "dashdot", "longdash")[j % 4]},
                        )
                    )
            figure.add_trace(
                go.Scatter(
                    x=[point["step"] for point in curve],
                    y=[point["loss"] for point in curve],
                    mode="lines",
                    name="loss" if len(by_seed) == 1 else plotly_text(f"loss, seed {seed}"),
                    opacity=1 if i == 0 else 0.55,
                    line={"width": 2 if i == 0 else 1.4, "color": tint[name]},
                )
            )
        figure.update_layout(
            xaxis={"title": {"text": "step"}},
            height=250,
            margin={"l": 46, "r": 8, "t": 6, "b": 40},
            showlegend=len(figure.data) > 1,
        )
        drawn[name] = as_json(figure)
    return drawn


# Titles of the metrics in a training curve. Below are the colour, dash and marker of their lines.
CURVES = {metric: metric_of(metric).short for metric in (COHERENT_HARMLESS_RATE, HARMLESS_RATE, MACRO_ACCURACY)}
_CURVE_LINES = {
    COHERENT_HARMLESS_RATE: (COLOURS[0], "solid", "circle"),
    HARMLESS_RATE: (COLOURS[4], "dot", "circle-open"),
    MACRO_ACCURACY: (COLOURS[1], "dash", "square"),
}


def curves(view: View) -> dict[str, Figure]:
    """Return for each model the chart of its harmless rate, coherent-harmless rate and macro accuracy by training step.

    All charts have the same axes. A thick line is the mean over seeds, at the steps that all of them reached. Thin
    lines are single seeds. If a method stopped early, its lines end at that step.
    """
    import plotly.graph_objects as go

    found = {name: rows for name, model in view.models.items() if (rows := model.get("curve"))}
    last = max((row["step"] for rows in found.values() for row in rows), default=0)
    drawn = {}
    for name, rows in found.items():
        figure = go.Figure()
        seeds = sorted({row["seed"] for row in rows if row["seed"] is not None})
        for metric, title in CURVES.items():
            colour, dash, symbol = _CURVE_LINES[metric]
            for seed in [*(seeds if len(seeds) > 1 else []), None]:
                mine = _by_step(rows, metric, seed)
                if not mine:
                    continue
                mean = seed is None
                who = title if mean else f"{title}, seed {seed}"
                figure.add_trace(
                    go.Scatter(
                        x=[step for step, _ in mine],
                        y=[value for _, value in mine],
                        mode="lines+markers" if mean else "lines",
                        name=plotly_text(title),
                        showlegend=mean,
                        opacity=1.0 if mean else 0.6,
                        line={"width": 2.2 if mean else 1.2, "color": colour, "dash": dash},
                        marker={"symbol": symbol, "size": 7, "color": colour},
                        hovertemplate=f"{plotly_text(who)} after step %{{x}}: %{{y:.1f}} %<extra></extra>",
                    )
                )
        _steps_below(figure, "training step", last, height=330)
        drawn[name] = as_json(figure)
    return drawn


def _by_step(rows: Iterable[dict[str, Any]], metric: str, seed: int | None = None) -> list[tuple[int, float]]:
    """Return (step, per cent) of one metric for a seed, or for the mean over seeds if `seed` is None."""
    return sorted(
        (row["step"], 100 * row["value"])
        for row in rows
        if (row["metric"], row["seed"]) == (metric, seed) and row["value"] is not None
    )


def _steps_below(figure: Any, title: str, last: int, height: int) -> None:
    """Set the axes of a chart of rates by step, up to the step `last`."""
    figure.update_layout(
        xaxis={"title": {"text": title}, "range": (-0.03 * last, 1.03 * last)},
        yaxis={"title": {"text": "%"}, "range": (-4, 104), "tickvals": [0, 20, 40, 60, 80, 100]},
        height=height,
        margin={"l": 46, "r": 8, "t": 6, "b": 44},
        showlegend=True,
    )


# Names of the data on which relearning trains, by kind.
RELEARNT = {"harmful": "harmful pairs", "benign": "benign text"}


def relearning(view: View) -> dict[str, Figure]:
    """Return for each kind of relearning the chart of rates by step, with one colour per model.

    Coherent-harmless rates are solid lines, and harmless rates are dotted lines.
    """
    import plotly.graph_objects as go

    tint, shape, drawn = colours(view), symbols(view), {}
    for kind in RELEARNT:
        figure = go.Figure()
        last = 0
        for name in tint:
            rows = view.relearning(name, kind)
            for metric in (HARMLESS_RATE, COHERENT_HARMLESS_RATE):
                mine = _by_step(rows, metric)
                if not mine:
                    continue
                last = max(last, mine[-1][0])
                headline = metric == COHERENT_HARMLESS_RATE
                figure.add_trace(
                    go.Scatter(
                        x=[step for step, _ in mine],
                        y=[value for _, value in mine],
                        mode="lines+markers",
                        name=plotly_text(shortened(view.title(name))),
                        showlegend=headline,
                        opacity=1.0 if headline else 0.75,
                        line={
                            "width": 2.2 if headline else 1.3,
                            "color": tint[name],
                            "dash": "solid" if headline else "dot",
                        },
                        marker={"symbol": shape[name] if headline else f"{shape[name]}-open", "size": 7},
                        hovertemplate=f"{plotly_text(view.title(name))}, {CURVES[metric]} after step %{{x}}: %{{y:.1f}} %"
                        "<extra></extra>",
                    )
                )
        if not figure.data:
            continue
        _steps_below(figure, "step of relearning", last, height=360)
        drawn[kind] = as_json(figure)
    return drawn


def _thin(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stride = max(1, len(curve) // HISTORY_POINTS)
    return curve[::stride] if (len(curve) - 1) % stride == 0 else [*curve[::stride], curve[-1]]


def rates_by_number(
    view: View,
    suite: str,
    points: Mapping[int, tuple[str, str]],
    title: str,
    fitted: Callable[[str, int], float | None] = lambda model, number: None,
) -> Figure | None:
    """Draw a rate against a number that doubles from point to point, with one line per model and the intervals.

    Args:
        view: The results.
        suite: Suite of the rates.
        points: The set and the metric at each number.
        title: Title of the horizontal axis, on which the numbers have equal distances.
        fitted: Returns the rate of a model at a number by a fitted law, which is a dotted line; None draws no line.

    Returns:
        The chart; None if no model has a rate.
    """
    import plotly.graph_objects as go

    tint, shape, figure = colours(view), symbols(view), go.Figure()
    models = [name for name in tint if name in view.measured()]
    for place, name in enumerate(models):
        found = [
            (number, cell) for number, (of, metric) in points.items() if (cell := view.cell(name, suite, of, metric))
        ]
        if not found:
            continue
        # Lines are shifted against each other, so that their intervals can be told apart.
        shift = 0.24 * (place / max(1, len(models) - 1) - 0.5)
        order = list(points)
        figure.add_trace(
            go.Scatter(
                x=[order.index(number) + shift for number, _ in found],
                y=[100 * (cell.value or 0.0) for _, cell in found],
                customdata=[number for number, _ in found],
                mode="lines+markers",
                name=plotly_text(shortened(view.title(name))),
                line={"width": 2.2, "color": tint[name]},
                marker={"symbol": shape[name], "size": 7},
                error_y=error_bars([(cell.value, cell.ci_low, cell.ci_high) for _, cell in found], tint[name]),
                hovertemplate=f"{plotly_text(view.title(name))} at %{{customdata}}: %{{y:.1f}} %<extra></extra>",
            )
        )
        law = [(number, rate) for number in points if (rate := fitted(name, number)) is not None]
        if law:
            figure.add_trace(
                go.Scatter(
                    x=[order.index(number) + shift for number, _ in law],
                    y=[100 * rate for _, rate in law],
                    customdata=[number for number, _ in law],
                    mode="lines",
                    name=plotly_text(shortened(view.title(name))),
                    showlegend=False,
                    line={"width": 1.3, "color": tint[name], "dash": "dot"},
                    hovertemplate=f"{plotly_text(view.title(name))}, power law at %{{customdata}}: %{{y:.1f}} %<extra></extra>",
                )
            )
    if not figure.data:
        return None
    _steps_below(figure, title, len(points) - 1, height=360)
    figure.update_layout(
        xaxis={
            "range": (-0.4, len(points) - 0.6),
            "tickvals": list(range(len(points))),
            "ticktext": [str(number) for number in points],
        }
    )
    return as_json(figure)
