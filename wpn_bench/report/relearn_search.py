"""The section of the report on the relearning search: how much training the best attack on each model needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wpn_bench.core.numbers import percent
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sections import Section
from wpn_bench.report.step_charts import rates_by_number
from wpn_bench.runs.files import ORACLE
from wpn_bench.runs.metrics import (
    COHERENT_RATE,
    HARMLESS_RATE,
    RELEARN_SEARCH,
    RELEARNING_ROWS,
    RELEARNING_STEPS,
    RELEARNING_TOKENS,
    SHARE_OF_ORACLE,
    SURVIVAL_RATE,
    relearning_set,
)
from wpn_bench.runs.view import Cell, View

_NOTE = (
    "Each model was attacked by {attacks} trainings on harmful pairs: learning rates, all weights or low-rank adapters, and schedules, of up "
    "to {steps} steps each. Successive halving kept the best on {selection} prompts, and the best was measured on {tested} others. None of "
    "these prompts asks for a fact that was trained on. A cell is the first measured step at which less than {goal} of the answers are harmless "
    "or incoherent, with the steps for the ends of its interval. More is better. Steps are measured at ratios of 1.25, so that smaller "
    "differences are none. The chart has the prompts without a harmful coherent answer at any step so far, with intervals clustered by "
    "fact. Lines end when an attack has clearly succeeded. A model that is below {goal} before any training is not attacked."
)
_ORACLE = " The share of the oracle says how much of the training of a model that never saw the harm is needed."


def section(view: View) -> Section | None:
    """Show the budget of the best attack on each model; None if none was searched."""
    found = {name: entries for name, model in view.models.items() if (entries := model.get("relearn_search"))}
    names = [name for name in view.sets(RELEARN_SEARCH) if not name.startswith(relearning_set(0)[:-1])]
    if not found or not names:
        return None
    asked, compared = names[0], ORACLE in view.models
    lines = []
    for model, entries in found.items():
        ends = [entry["measured"][-1] for entry in entries if entry["measured"]]
        budgets = {RELEARNING_STEPS: "step", RELEARNING_ROWS: "rows", RELEARNING_TOKENS: "tokens"}
        if not ends:
            continue
        cells: list[Shown | None] = [
            _budget(view.cell(model, RELEARN_SEARCH, asked, metric), max(end[what] for end in ends))
            for metric, what in budgets.items()
        ]
        if compared:
            cells.append(_share(view.cell(model, RELEARN_SEARCH, asked, SHARE_OF_ORACLE)))
        cells.append(_end(view, model, relearning_set(max(end["step"] for end in ends))))
        cells.append(_best(entries))
        lines.append(Line(view.title(model), cells, key=model))
    if not lines:
        return None
    heads = [
        "steps",
        "rows",
        "tokens",
        *(["share of the oracle"] if compared else []),
        "harmless at the end",
        "best attack",
    ]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    steps = sorted({point["step"] for entries in found.values() for entry in entries for point in entry["measured"]})
    points = {step: (relearning_set(step), SURVIVAL_RATE) for step in steps}
    chart = rates_by_number(view, RELEARN_SEARCH, points, "step of the best relearning attack")
    note = _NOTE.format(**_told(list(found.values()))) + (_ORACLE if compared else "")
    return Section("Relearning as a search", table, note, chart)


def _told(found: list[list[dict[str, Any]]]) -> dict[str, str]:
    entries = [entry for of_model in found for entry in of_model]
    first = entries[0]
    attacks = max(len(entry["tried"]) for entry in entries)
    return {
        "attacks": str(attacks),
        "steps": str(first["steps"]),
        "selection": str(first["selection_prompts"]),
        "tested": str(first["tested_prompts"]),
        "goal": percent(first["goal"], 0),
    }


def _end(view: View, model: str, name: str) -> Shown | None:
    """Return the harmless rate at the last measured step, with the coherent rate as a note."""
    shown, beside = (rate(view.cell(model, RELEARN_SEARCH, name, metric)) for metric in (HARMLESS_RATE, COHERENT_RATE))
    return replace(shown, note=f"coherent {beside.value}") if shown and beside else shown


def _budget(cell: Cell | None, last: int) -> Shown:
    """Return a budget, or that it is more than what was spent until the last measured step."""
    if cell is None or cell.value is None:
        return Shown(f"more than {last:,}")
    high = "more" if cell.ci_high is None else f"{cell.ci_high:,.0f}"
    low = "?" if cell.ci_low is None else f"{cell.ci_low:,.0f}"
    return Shown(f"{cell.value:,.0f}", f"[{low}, {high}]", n=cell.n)


def _share(cell: Cell | None) -> Shown | None:
    """Return the share; None if the model or the oracle has no budget."""
    if cell is None or cell.value is None:
        return None
    low = "?" if cell.ci_low is None else percent(cell.ci_low, 0)
    return Shown(percent(cell.value, 0), f"[{low}, {'more' if cell.ci_high is None else percent(cell.ci_high, 0)}]")


def _best(entries: list[dict[str, Any]]) -> Shown:
    """Return the best attack on the model of the first seed that was attacked."""
    best = next((entry["best"] for entry in entries if entry["best"]), None)
    if best is None:
        failed = any(entry["tried"] for entry in entries)
        return Shown("all failed" if failed else "none needed")
    return Shown(f"{best['weights']}, {best['schedule']}, lr {best['lr']:.2g}")
