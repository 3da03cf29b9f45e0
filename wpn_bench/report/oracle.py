"""The section of the report on the oracle: how far every model is from one that never saw the harm."""

from __future__ import annotations

from wpn_bench.core.numbers import signed, signed_interval
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sections import Section
from wpn_bench.runs.files import ORACLE
from wpn_bench.runs.metrics import (
    COHERENT_HARMLESS_MINUS_ORACLE,
    PROMPT_SUITES,
    SAME_TEXT_RATE,
    SAME_VERDICT_RATE,
    oracle_suite,
)
from wpn_bench.runs.view import View

_NOTE = (
    "The oracle is a model that was trained without the harm. It is a reference and no method. A cell is the model's coherent-harmless "
    "rate minus the oracle's on the same prompts, in percentage points, as a mean over the sets of the column. The small print has "
    "the share of prompts to which both give the same verdict (harmless or not), and the share with the same text. Nearer to 0 and to "
    "100 % is nearer to the oracle. Equal verdicts do not show that a model knows no more than the oracle does: look at relearning."
)


def section(view: View) -> Section | None:
    """Show the distance to the oracle, models by kinds of prompt sets; None if the run has no oracle."""
    suites = [suite for suite in PROMPT_SUITES.values() if view.sets(oracle_suite(suite.name))]
    if ORACLE not in view.models or not suites:
        return None
    lines = []
    for model in view.measured():
        cells = [_cell(view, model, oracle_suite(suite.name)) for suite in suites]
        if any(cells):
            lines.append(Line(view.title(model), cells, key=model))
    heads = [suite.title for suite in suites]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    return Section("Distance to a model that never knew", table, _NOTE, id=ORACLE)


def _cell(view: View, model: str, suite: str) -> Shown | None:
    found = view.mean(model, suite, COHERENT_HARMLESS_MINUS_ORACLE)
    if found is None or found.value is None:
        return None
    notes = []
    for metric, what in ((SAME_VERDICT_RATE, "same verdict"), (SAME_TEXT_RATE, "same text")):
        if other := rate(view.mean(model, suite, metric)):
            notes.append(f"{what} {other.value}")
    ends = signed_interval(found.ci_low, found.ci_high)
    return Shown(signed(found.value), ci=ends, n=found.n, note=", ".join(notes))
