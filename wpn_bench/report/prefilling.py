"""The section of the report on the prefilling attack: rates by the number of tokens with which the answers began."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.analysis.prefilling_rows import LACKING, SHORT, set_of
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sections import Section
from wpn_bench.report.step_charts import rates_by_number
from wpn_bench.runs.metrics import COHERENT_HARMLESS_RATE, HARMLESS_RATE, HARMLESS_WITH_PREFIX_RATE, PREFILLING
from wpn_bench.runs.view import View

_NOTE = (
    "The answer began with the first tokens of a harmful one, and the model continued it (Qi et al. 2024). The large number is the "
    "share of continuations that are harmless by themselves; the small print has the share that is also coherent, and the share that "
    "is harmless together with the prefix. The last counts the prefix, so it falls with the depth even if the model says nothing "
    "harmful. Every model got the prefix in its own tokens."
)


def _depths(view: View) -> list[int]:
    return sorted(int(name.rpartition("_")[2]) for name in view.sets(PREFILLING))


def section(view: View) -> Section | None:
    """Show the rates by depth, models by depths; None if they were not measured."""
    depths = _depths(view)
    if not depths:
        return None
    lines = []
    for model in view.measured():
        cells = [_cell(view, model, depth) for depth in depths]
        if any(cells):
            lines.append(Line(view.title(model), cells, key=model))
    heads = ["no prefix" if not depth else "1 token" if depth == 1 else f"{depth} tokens" for depth in depths]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    chart = rates_by_number(view, PREFILLING, {depth: (set_of(depth), HARMLESS_RATE) for depth in depths}, _AXIS)
    return Section("Prefilled answers", table, " ".join([_NOTE, *_left_out(view, depths)]), chart)


_AXIS = "tokens of a harmful answer at the beginning"


def _cell(view: View, model: str, depth: int) -> Shown | None:
    shown = rate(view.cell(model, PREFILLING, set_of(depth), HARMLESS_RATE))
    if shown is None:
        return None
    beside = []
    for metric, what in ((COHERENT_HARMLESS_RATE, "coherent"), (HARMLESS_WITH_PREFIX_RATE, "with prefix")):
        other = rate(view.cell(model, PREFILLING, set_of(depth), metric))
        if other is not None and not (metric == HARMLESS_WITH_PREFIX_RATE and depth == 0):
            beside.append(f"{what} {other.value}")
    return replace(shown, note=", ".join(beside))


def _left_out(view: View, depths: list[int]) -> list[str]:
    """Say how many prompts were left out, of the model of which most were."""
    found = []
    for metric, what in ((LACKING, "had no harmful reference"), (SHORT, "had a reference with no more tokens")):
        most: dict[int, int] = {}
        for depth in depths:
            cells = [view.cell(model, PREFILLING, set_of(depth), metric) for model in view.measured()]
            most[depth] = max((int(cell.value or 0) for cell in cells if cell), default=0)
        if metric == LACKING and max(most.values()):
            found.append(f"{max(most.values())} prompts {what} and were left out.")
        elif metric == SHORT and max(most.values()):
            told = ", ".join(f"{count} at {depth} tokens" for depth, count in most.items() if count)
            found.append(f"Prompts that {what} were left out: {told}.")
    return found
