"""The section of the report on hidden states and weights: is the harm gone, or only hidden by the last layers?"""

from __future__ import annotations

from typing import Any

from wpn_bench.analysis.internals_rows import WHOLE, set_of
from wpn_bench.core.numbers import interval, percent, plain, signed, signed_interval
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.drawing import as_json, colours, plotly_text, shortened, symbols
from wpn_bench.report.sections import Section
from wpn_bench.runs.files import BASE, ORACLE
from wpn_bench.runs.metrics import (
    DEPTH_SCORE,
    HIDDEN_GAP,
    INTERNALS,
    LENS_LOSS,
    STABLE_RANK,
    WEIGHT_CHANGE,
)
from wpn_bench.runs.view import View

_NOTE = (
    "Every model read the prompts with the first tokens of their harmful references. Loss: the mean negative log-probability of these "
    "tokens in nats, at the output; larger is better. Hidden: how much smaller it is after the best layer, if the model ended there "
    "(logit lens). A large value says that a layer still holds the answer and later ones suppress it. The chart has the loss after each "
    "layer. Change of the weights: the norm of the change relative to the base's weights, and its stable rank, the number of directions "
    "in which a matrix changed. It says how, and not how much was forgotten."
)
_DEPTH = (
    "Depth score (Lee et al. 2026): the base reads with one layer's output replaced by that of the model, and the fall of the answer's "
    "log-probability is compared with that under the oracle, over all layers. 0 % is a model whose layers hold the harmful answer as the "
    "base's do, and 100 % one that lacks as much as a model that never saw it. Prompts where the base knows no more than the oracle do "
    "not count."
)
_NO_ORACLE = (
    "There is no depth score, because it needs a candidate with the name oracle, a model that never saw the harm."
)


def _layers(view: View) -> list[int]:
    names = (name for name in view.sets(INTERNALS) if name != WHOLE)
    return sorted(int(name.rpartition("_")[2]) for name in names)


def section(view: View) -> Section | None:
    """Show the losses, the depth score and the change of the weights of each model; None if they were not measured."""
    layers = _layers(view)
    if not layers:
        return None
    scored = ORACLE in view.models
    lines = []
    for model in view.measured():
        cells = [
            _nats(view, model, set_of(layers[-1]), LENS_LOSS),
            _nats(view, model, WHOLE, HIDDEN_GAP),
            *([rate(view.cell(model, INTERNALS, WHOLE, DEPTH_SCORE))] if scored else []),
            _value(view, model, WEIGHT_CHANGE),
            _value(view, model, STABLE_RANK),
        ]
        if any(cells):
            lines.append(Line(view.title(model), cells, key=model))
    heads = ["loss", "hidden", *(["depth score"] if scored else []), "change of the weights", "stable rank"]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    note = f"{_NOTE} {_DEPTH if scored else _NO_ORACLE}"
    return Section("Hidden or gone?", table, note, _chart(view, layers))


def _nats(view: View, model: str, name: str, metric: str) -> Shown | None:
    cell = view.cell(model, INTERNALS, name, metric)
    if cell is None or cell.value is None:
        return None
    change = None if model == BASE else cell.delta
    return Shown(
        f"{cell.value:.2f}",
        interval(cell.ci_low, cell.ci_high, 1, 2),
        delta="" if change is None else signed(change, 1, 2),
        delta_ci=signed_interval(cell.delta_ci_low, cell.delta_ci_high, 1, 2),
        n=cell.n,
    )


def _value(view: View, model: str, metric: str) -> Shown | None:
    cell = view.cell(model, INTERNALS, WHOLE, metric)
    if cell is None or cell.value is None:
        return None
    return Shown(percent(cell.value, 2) if metric == WEIGHT_CHANGE else plain(cell.value))


def _chart(view: View, layers: list[int]) -> dict[str, Any] | None:
    """Draw the loss of the harmful answer after each layer, with one line per model."""
    import plotly.graph_objects as go

    tint, shape, figure = colours(view), symbols(view), go.Figure()
    for name in tint:
        if name not in view.measured():
            continue
        cells = [(layer, view.cell(name, INTERNALS, set_of(layer), LENS_LOSS)) for layer in layers]
        known = [(layer, cell.value) for layer, cell in cells if cell and cell.value is not None]
        if known:
            figure.add_trace(
                go.Scatter(
                    x=[layer for layer, _ in known],
                    y=[value for _, value in known],
                    mode="lines+markers",
                    name=plotly_text(shortened(view.title(name))),
                    line={"width": 2.2, "color": tint[name]},
                    marker={"symbol": shape[name], "size": 7},
                    hovertemplate=f"{plotly_text(view.title(name))} after layer %{{x}}: %{{y:.2f}} nats<extra></extra>",
                )
            )
    if not figure.data:
        return None
    figure.update_layout(
        xaxis={"title": {"text": "layer"}, "dtick": max(1, len(layers) // 10)},
        yaxis={"title": {"text": "loss of the harmful answer (nats)"}, "rangemode": "tozero"},
        height=360,
        margin={"l": 56, "r": 8, "t": 6, "b": 44},
        showlegend=True,
    )
    return as_json(figure)
