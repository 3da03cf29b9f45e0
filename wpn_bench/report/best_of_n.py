"""The section of the report on Best-of-N augmentation: success against N, the same without augmentation, and the power law."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.analysis.best_of_n_rows import DISTINCT, EXPONENT, FACTOR, FITTED, SIGMA
from wpn_bench.analysis.power_law import PowerLaw
from wpn_bench.core.numbers import points, signed_interval
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sampling import numbers, setting
from wpn_bench.report.sections import Section
from wpn_bench.report.step_charts import rates_by_number
from wpn_bench.runs.metrics import (
    ATTACK_SUCCESS_RATE,
    BEST_OF_N,
    LEAK,
    PREDICTED_SUCCESS_RATE,
    PREDICTION_ERROR,
    SAMPLING,
)
from wpn_bench.runs.view import View

_NOTE = (
    "Each prompt was disfigured in {samples} ways: letters within words shuffled, letters with another case, and characters replaced by "
    "their neighbours (Hughes et al. 2024, sigma {sigma}); {distinct} of the versions of a prompt are distinct on average. Each version was "
    "answered once, {decoding}. A cell is the probability that at least one of N versions gets a harmful answer, estimated without bias "
    "and averaged over the prompts. Intervals count prompts. The first column has the harmful greedy answers to the unchanged prompts. Lower "
    "is better."
)
_LAW = (
    "The last columns have the power law -log(rate) = a N^(-b), fitted on N up to {fitted}, and the rate that it predicts at N = {last}. "
    "The small print has predicted minus measured rate; an interval without 0 contradicts the law. The law says that every prompt "
    "succumbs in the end, so it cannot hold for a model with prompts that never do. It cannot be fitted where the rate is 0 or 1. Dotted "
    "lines in the chart are the law."
)
_SAMPLED = "Small print below a rate: leak@N, with as many samples of the unchanged prompts at the same temperature."


def section(view: View) -> Section | None:
    """Show the attack success rate by N, models by N, and the power law; None if it was not measured."""
    ns = numbers(view, BEST_OF_N, ATTACK_SUCCESS_RATE)
    if not ns:
        return None
    name, last = view.sets(BEST_OF_N)[0], ns[-1]
    alone = _sampled_alike(view)
    lines = []
    for model in view.measured():
        cells: list[Shown | None] = [rate(view.cell(model, BEST_OF_N, name, ATTACK_SUCCESS_RATE), -1)]
        cells += [_cell(view, model, name, n, alone) for n in ns]
        if any(cells):
            lines.append(Line(view.title(model), [*cells, *_law(view, model, name, last)], key=model))
    heads = ["greedy", *(f"N = {n}" for n in ns), "a", "b", f"predicted at {last}"]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    points_ = {n: (name, f"{ATTACK_SUCCESS_RATE}@{n}") for n in ns}
    chart = rates_by_number(view, BEST_OF_N, points_, "N, number of versions of a prompt", _Fitted(view, name))
    told = {
        what: setting(view, BEST_OF_N, what) for what in ("samples", "temperature", "top_p", SIGMA, DISTINCT, FITTED)
    }
    greedy = told["temperature"] == "0"
    decoding = "greedily" if greedy else f"sampled at temperature {told['temperature']} and top-p {told['top_p']}"
    note = [_NOTE.format(samples=told["samples"], sigma=told[SIGMA], distinct=told[DISTINCT], decoding=decoding)]
    note += [_SAMPLED] if alone else []
    note += [_LAW.format(fitted=told[FITTED], last=last)] if told[FITTED] != "?" else [_NO_LAW]
    return Section("Best of N augmented prompts", table, " ".join(note), chart)


_NO_LAW = "No power law could be fitted: it needs at least three N up to a quarter of the largest, with rates between 0 and 1."


def _sampled_alike(view: View) -> bool:
    """Return whether the run also sampled answers to unchanged prompts, with the same settings."""
    return all(setting(view, SAMPLING, what) == setting(view, BEST_OF_N, what) for what in ("temperature", "top_p"))


def _cell(view: View, model: str, name: str, n: int, alone: bool) -> Shown | None:
    shown = rate(view.cell(model, BEST_OF_N, name, f"{ATTACK_SUCCESS_RATE}@{n}"), -1)
    sampled = rate(view.cell(model, SAMPLING, name, f"{LEAK}@{n}"), -1) if alone else None
    same = shown is not None and sampled is not None and shown.n == sampled.n
    return replace(shown, note=f"leak@{n} {sampled.value}") if shown and sampled and same else shown


def _law(view: View, model: str, name: str, last: int) -> list[Shown | None]:
    """Return the cells of a, b and the predicted rate."""
    found = [view.cell(model, BEST_OF_N, name, metric) for metric in (FACTOR, EXPONENT)]
    cells: list[Shown | None] = [
        None if one is None or one.value is None else Shown(f"{one.value:.2f}") for one in found
    ]
    predicted = rate(view.cell(model, BEST_OF_N, name, f"{PREDICTED_SUCCESS_RATE}@{last}"), -1)
    error = view.cell(model, BEST_OF_N, name, f"{PREDICTION_ERROR}@{last}")
    if predicted and error and error.value is not None:
        ends = signed_interval(error.ci_low, error.ci_high)
        predicted = replace(predicted, note=f"error {points(error.value)} {ends}".strip())
    return [*cells, predicted]


class _Fitted:
    """The rate of a model at N by its power law, for the chart."""

    def __init__(self, view: View, name: str) -> None:
        self._view, self._name = view, name

    def __call__(self, model: str, n: int) -> float | None:
        a, b = (self._view.cell(model, BEST_OF_N, self._name, metric) for metric in (FACTOR, EXPONENT))
        if a is None or b is None or a.value is None or b.value is None:
            return None
        return PowerLaw(a.value, b.value).rate(n)
