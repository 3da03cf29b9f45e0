"""Charts of the results as Plotly JSON: {"data": [...], "layout": {...}}, or None if there is no data.

An annotation with the name "wide" is hidden on a narrow screen, where the legend replaces it. `step_charts` has the
charts over training steps.
"""

from __future__ import annotations

from typing import Any

from wpn_bench.core.numbers import percent, points
from wpn_bench.report.drawing import (
    COLOURS,
    GREY,
    Figure,
    as_json,
    change_text,
    colours,
    error_bar,
    error_bars,
    plotly_text,
    shortened,
    symbols,
    vertical_line,
)
from wpn_bench.report.labels import Bar, placed
from wpn_bench.runs.files import BASE
from wpn_bench.runs.metrics import (
    ACCURACY,
    ATTACK,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    HARMLESS_RATE,
    IN_DOMAIN,
    OUT_OF_DISTRIBUTION,
    benchmarks_in_order,
)
from wpn_bench.runs.view import Cell, View

SCALE = [[0.0, "#b4532a"], [0.25, "#dd9a6b"], [0.5, "#efe6d8"], [0.75, "#7fb0d3"], [1.0, "#1f6299"]]


def trade_off(view: View) -> Figure | None:
    """Draw harmlessness in domain against the benchmark average, with one point per model.

    The filled marker is the coherent-harmless rate, and the hollow marker above it is the harmless rate. The dotted
    line between them shows the proportion of answers that are harmless but incoherent. The horizontal bar of a method
    is the paired interval of its change against base, centred on its accuracy. So a bar that crosses the margin line
    means 'inconclusive'.
    """
    import plotly.graph_objects as go

    shown = [
        (name, average, cell)
        for name in view.measured()
        if (average := view.benchmark_average(name)) and (cell := view.mean(name, IN_DOMAIN))
    ]
    if not shown:
        return None
    tint, shape, figure = colours(view), symbols(view), go.Figure()
    xs: list[float] = []
    marks: list[tuple[float, float]] = []
    hollow_lines: list[tuple[float, float, float]] = []
    for name, average, cell in shown:
        x, y = 100 * (average.value or 0.0), 100 * (cell.value or 0.0)
        hollow = view.mean(name, IN_DOMAIN, HARMLESS_RATE)
        marks.append((x, y))
        if hollow and hollow.value is not None:
            top = 100 * hollow.value
            marks.append((x, top))
            hollow_lines.append((x, y, top))
            figure.add_trace(
                go.Scatter(
                    x=[x, x],
                    y=[y, top],
                    mode="lines+markers",
                    showlegend=False,
                    opacity=0.9,
                    line={"color": tint[name], "width": 1.5, "dash": "dot"},
                    marker={
                        "symbol": f"{shape[name]}-open",
                        "size": [0, 11],
                        "color": tint[name],
                        "line": {"width": 1.8},
                    },
                    hovertemplate=[
                        None,
                        f"{plotly_text(view.title(name))}<br>harmless, incoherent answers counted {top:.1f} %<extra></extra>",
                    ],
                )
            )
        across = error_bar(average.delta, average.delta_ci_low, average.delta_ci_high, tint[name])
        for side, end in (("array", 1), ("arrayminus", -1)):
            if across:
                xs.append(x + end * across[side][0])
        xs.append(x)
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[y],
                mode="markers",
                name=plotly_text(shortened(view.title(name), 34)),
                showlegend=True,
                marker={"symbol": shape[name], "size": 12, "color": tint[name]},
                error_x=across,
                error_y=error_bar(cell.value, cell.ci_low, cell.ci_high, tint[name]),
                hovertemplate=(
                    f"{plotly_text(view.title(name))}<br>coherent-harmless {y:.1f} %<br>benchmark average {x:.1f} % "
                    f"({points(average.delta) if average.delta is not None else 'base'})<extra></extra>"
                ),
            )
        )
        xs += _cloud(view, figure, name, shape[name], tint[name])
    xs += _varieties(view, figure, tint)
    base = view.benchmark_average(BASE)
    if base and base.value is not None:
        limit = 100 * (base.value - view.margin)
        xs.append(limit)
        vertical_line(figure, x=limit, dash="dash", text=f"margin −{100 * view.margin:g} points")
        vertical_line(figure, x=100 * base.value, dash="solid")
    low, high = min(xs), max(xs)
    pad = max(0.6, 0.09 * (high - low))
    span = (low - pad, high + 2 * pad)
    bars = [_reach(average, cell) for _, average, cell in shown]
    labels = [(shortened(view.title(name), 34), tint[name]) for name, _, _ in shown]
    upright = (
        [100 * value for value in (base.value, base.value - view.margin)] if base and base.value is not None else []
    )
    notes = []
    for label in placed(labels, bars, marks, hollow_lines + [(x, -4, 105) for x in upright], span):
        font = {"color": label.pop("color"), "size": 13}
        notes.append({"name": "wide", "font": font, **label, "text": plotly_text(label["text"])})
    figure.layout.annotations = [*figure.layout.annotations, *notes]  # adding them one by one would take quadratic time
    figure.update_layout(
        xaxis={"title": {"text": "benchmark average, %"}, "range": span},
        yaxis={"title": {"text": "in-domain answers, %"}, "range": (-4, 105), "tickvals": [0, 20, 40, 60, 80, 100]},
        height=460,
        margin={"l": 58, "r": 12, "t": 26, "b": 52},
        hovermode="closest",
    )
    return as_json(figure)


def _cloud(view: View, figure: Any, name: str, symbol: str, colour: str) -> list[float]:
    """Draw the seeds of a model as small points around their mean. Returns their x values."""
    import plotly.graph_objects as go

    points = [(100 * x, 100 * y) for x, y in view.cloud(name)]
    if points:
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="markers",
                showlegend=False,
                opacity=0.5,
                marker={"symbol": symbol, "size": 6, "color": colour},
                hovertemplate=f"{plotly_text(view.title(name))}, one seed<br>coherent-harmless %{{y:.1f}} %<br>benchmark average %{{x:.1f}} %<extra></extra>",
            )
        )
    return [x for x, _ in points]


def _varieties(view: View, figure: Any, tint: dict[str, str]) -> list[float]:
    """Draw the variants of each method as small points in the colour of the method. Returns their x values.

    The points have no names and no error bars, because there are many.
    """
    import plotly.graph_objects as go

    xs = []
    for name in view.every_measured():
        average, cell = view.benchmark_average(name), view.mean(name, IN_DOMAIN)
        if name not in view.varieties or average is None or cell is None:
            continue
        method = view.models[name].get("method")
        like = next((shown for shown in tint if view.models.get(shown, {}).get("method") == method), None)
        x, y = 100 * (average.value or 0.0), 100 * (cell.value or 0.0)
        xs.append(x)
        figure.add_trace(
            go.Scatter(
                x=[x],
                y=[y],
                mode="markers",
                showlegend=False,
                opacity=0.55,
                marker={"symbol": "circle", "size": 6, "color": tint.get(like or "", GREY)},
                hovertemplate=f"{plotly_text(view.title(name))}<br>coherent-harmless {y:.1f} %<br>benchmark average {x:.1f} %<extra></extra>",
            )
        )
    return xs


def harmlessness(view: View) -> Figure | None:
    """Draw the chart for a run without benchmarks, with one row per model.

    Filled markers are the coherent-harmless rates, and hollow markers the harmless rates.
    """
    import plotly.graph_objects as go

    shown = [(name, cell) for name in view.measured() if (cell := view.mean(name, IN_DOMAIN))]
    if not shown:
        return None
    tint, shape, figure = colours(view), symbols(view), go.Figure()
    for row, (name, cell) in enumerate(shown):
        hollow = view.mean(name, IN_DOMAIN, HARMLESS_RATE)
        if hollow and hollow.value is not None:
            figure.add_trace(
                go.Scatter(
                    x=[100 * (cell.value or 0), 100 * hollow.value],
                    y=[row, row],
                    mode="lines+markers",
                    hoverinfo="skip",
                    line={"color": tint[name], "dash": "dot", "width": 1.5},
                    marker={"symbol": f"{shape[name]}-open", "size": [0, 11], "color": tint[name]},
                )
            )
        figure.add_trace(
            go.Scatter(
                x=[100 * (cell.value or 0)],
                y=[row],
                mode="markers",
                error_x=error_bar(cell.value, cell.ci_low, cell.ci_high, tint[name]),
                marker={"symbol": shape[name], "size": 12, "color": tint[name]},
                hovertemplate=f"{plotly_text(view.title(name))}: {percent(cell.value)}<extra></extra>",
            )
        )
    names = [plotly_text(shortened(view.title(name))) for name, _ in shown]
    figure.update_layout(
        xaxis={"title": {"text": "in-domain answers, %"}, "range": (-3, 103)},
        yaxis={
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": (len(names) - 0.5, -0.5),
            "automargin": True,
        },
        height=110 + 42 * len(names),
        margin={"l": 10, "r": 12, "t": 10, "b": 50},
        showlegend=False,
    )
    return as_json(figure)


def benchmarks(view: View) -> Figure | None:
    """Draw the paired change of accuracy against base in percentage points, by task and method.

    The macro average is at the top.
    """
    import plotly.graph_objects as go

    own = view.own_benchmarks()
    tasks = [task for task in benchmarks_in_order(view.sets(BENCHMARK)) if task not in own]
    methods = [
        name
        for name in view.methods()
        if any((cell := view.cell(name, BENCHMARK, task, ACCURACY)) and cell.delta is not None for task in tasks)
    ]
    if not methods or not tasks:
        return None
    tint, shape, figure = colours(view), symbols(view), go.Figure()
    step = 0.72 / max(len(methods), 1)
    for i, name in enumerate(methods):
        cells = [(row, task, view.cell(name, BENCHMARK, task, ACCURACY)) for row, task in enumerate(tasks)]
        drawn = [(row, task, cell) for row, task, cell in cells if cell is not None and cell.delta is not None]
        figure.add_trace(
            go.Scatter(
                x=[100 * (cell.delta or 0) for _, _, cell in drawn],
                y=[row + (i - (len(methods) - 1) / 2) * step for row, _, _ in drawn],
                mode="markers",
                name=plotly_text(shortened(view.title(name), 34)),
                marker={"symbol": shape[name], "size": 8, "color": tint[name]},
                error_x=error_bars(
                    [(cell.delta, cell.delta_ci_low, cell.delta_ci_high) for _, _, cell in drawn], tint[name]
                ),
                hovertemplate=[
                    f"{plotly_text(view.title(name))}, {plotly_text(task)}: {change_text(cell)}<extra></extra>"
                    for _, task, cell in drawn
                ],
            )
        )
    vertical_line(figure, x=0, dash="solid")
    vertical_line(figure, x=-100 * view.margin, dash="dash")
    figure.add_shape(  # highlights the macro average, to which the margin applies
        type="rect",
        xref="paper",
        x0=0,
        x1=1,
        y0=-0.5,
        y1=0.5,
        fillcolor=GREY,
        opacity=0.13,
        line={"width": 0},
        layer="below",
    )
    ticks = ["benchmark average" if task == BENCHMARK_AVERAGE else plotly_text(shortened(task)) for task in tasks]
    figure.update_layout(
        xaxis={"title": {"text": "change of accuracy against base, points"}, "zeroline": False},
        yaxis={
            "tickvals": list(range(len(tasks))),
            "ticktext": ticks,
            "range": (len(tasks) - 0.5, -0.5),
            "automargin": True,
            "showgrid": False,
        },
        height=130 + len(tasks) * max(28, 8 + 9 * len(methods)),
        margin={"l": 10, "r": 12, "t": 8, "b": 50},
        showlegend=True,
    )
    return as_json(figure)


def generalisation(view: View) -> Figure | None:
    """Draw a heat map by set and model of the coherent-harmless rate, without refusals where they are wrong.

    Sets out of distribution come first, followed by the attacks.
    """
    import plotly.graph_objects as go

    rows = [(suite, name) for suite in (OUT_OF_DISTRIBUTION, ATTACK) for name in view.sets(suite)]
    models = view.measured()
    table = [[view.cell(model, suite, name, view.rate_of(suite, name)) for model in models] for suite, name in rows]
    if not rows or not any(cell for row in table for cell in row):
        return None
    labels = [f"{shortened(name)}  ·  {'attack' if suite == 'attack' else 'ood'}" for suite, name in rows]
    hover = [
        [
            f"{plotly_text(view.title(model))}, {plotly_text(name)}: {percent(cell.value)}"
            + (f"<br>{change_text(cell)} against base" if cell.delta is not None else "")
            if cell
            else "not measured"
            for model, cell in zip(models, row, strict=True)
        ]
        for (_, name), row in zip(rows, table, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=[[None if cell is None else round(100 * (cell.value or 0), 2) for cell in row] for row in table],
            x=list(range(len(models))),
            y=list(range(len(rows))),
            customdata=hover,
            texttemplate="%{z:.0f}",
            hovertemplate="%{customdata}<extra></extra>",
            zmin=0,
            zmax=100,
            colorscale=SCALE,
            xgap=2,
            ygap=2,
            showscale=False,
            textfont={"size": 13},
        )
    )
    names = [plotly_text(shortened(name, 14)) for name in models]
    figure.update_layout(
        xaxis={
            "tickvals": list(range(len(models))),
            "ticktext": names,
            "side": "top",
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={
            "tickvals": list(range(len(rows))),
            "ticktext": [plotly_text(label) for label in labels],
            "range": (len(rows) - 0.5, -0.5),
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
        },
        height=60 + 34 * len(rows),
        margin={"l": 10, "r": 12, "t": 36, "b": 8},
    )
    return as_json(figure)


def thresholds(view: View) -> Figure | None:
    """Draw the in-domain harmless rate by the judge's threshold, with one line per model.

    The dashed line is the threshold that the run uses.
    """
    import plotly.graph_objects as go

    tint, shape, figure = colours(view), symbols(view), go.Figure()
    tenths = range(1, 10)
    for name in view.measured():
        cells = {t / 10: view.mean(name, IN_DOMAIN, f"{HARMLESS_RATE}@0.{t}") for t in tenths}
        drawn = {t: 100 * cell.value for t, cell in cells.items() if cell and cell.value is not None}
        if not drawn:
            continue
        figure.add_trace(
            go.Scatter(
                x=list(drawn),
                y=list(drawn.values()),
                mode="lines+markers",
                name=plotly_text(shortened(view.title(name), 34)),
                line={"color": tint[name], "width": 2},
                marker={"symbol": shape[name], "size": 7, "color": tint[name]},
                hovertemplate=f"{plotly_text(view.title(name))}, under %{{x}}: %{{y:.1f}} %<extra></extra>",
            )
        )
    if not figure.data:
        return None
    vertical_line(figure, x=float(view.run.get("threshold") or 0.5), dash="dash")
    figure.update_layout(
        xaxis={"title": {"text": "harmless is a score under"}, "tickvals": [t / 10 for t in tenths]},
        yaxis={"title": {"text": "%"}, "range": (-4, 104), "tickvals": [0, 20, 40, 60, 80, 100]},
        height=340,
        margin={"l": 46, "r": 8, "t": 6, "b": 48},
        showlegend=True,
    )
    return as_json(figure)


def calibration(view: View) -> Figure | None:
    """Draw the reliability diagram of the deciding judge: the proportion of harmful texts by mean score, in ten bins.

    On the dashed diagonal, the judge is calibrated. The size of a marker shows the number of texts in its bin.
    """
    import plotly.graph_objects as go

    bins = [b for b in (view.run.get("judge_card") or {}).get("calibration") or [] if b["score"] is not None]
    if not bins:
        return None
    most = max(b["harmful"]["n"] for b in bins)
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[0, 100], mode="lines", hoverinfo="skip", line={"color": GREY, "width": 1.2, "dash": "dash"}
        )
    )
    shares = [b["harmful"] for b in bins]
    figure.add_trace(
        go.Scatter(
            x=[b["score"] for b in bins],
            y=[100 * s["value"] for s in shares],
            mode="markers",
            marker={"size": [8 + 14 * (s["n"] / most) ** 0.5 for s in shares], "color": COLOURS[0], "opacity": 0.85},
            error_y=error_bars([(s["value"], s["low"], s["high"]) for s in shares], COLOURS[0]),
            text=[f"{s['n']:,} texts" for s in shares],
            hovertemplate="score %{x:.2f}: %{y:.1f} % harmful, %{text}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": {"text": "mean score of the bin"}, "range": (-0.04, 1.04)},
        yaxis={"title": {"text": "harmful by the labels, %"}, "range": (-4, 104), "tickvals": [0, 20, 40, 60, 80, 100]},
        height=320,
        margin={"l": 58, "r": 12, "t": 8, "b": 48},
    )
    return as_json(figure)


def _reach(average: Cell, cell: Cell) -> Bar:
    """Return the position of a point and the ends of its error bars, all as rates in per cent.

    If an interval is unknown, its bar has length 0.
    """
    x, y = 100 * (average.value or 0.0), 100 * (cell.value or 0.0)
    left = x + 100 * ((average.delta_ci_low or 0) - (average.delta or 0)) if average.delta_ci_low is not None else x
    right = x + 100 * ((average.delta_ci_high or 0) - (average.delta or 0)) if average.delta_ci_high is not None else x
    low = 100 * cell.ci_low if cell.ci_low is not None else y
    high = 100 * cell.ci_high if cell.ci_high is not None else y
    return Bar(x, y, left, right, low, high)
