"""The section of the report on suffixes that were found on one model and asked of the others."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.analysis.transfer_rows import COUNTS
from wpn_bench.prompts import WORST_CASE
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sections import Section
from wpn_bench.runs.metrics import (
    ATTACK,
    HARMLESS_RATE,
    TRANSFER,
    WITHOUT_SUFFIX,
    WORST_TRANSFERRED_RATE,
    found_on,
)
from wpn_bench.runs.view import View

_NOTE = (
    "Rows: the model on which the suffixes were searched. Columns: the model that was asked. A cell is the share of harmless answers; on "
    "the diagonal is the attack on the model itself. Suffixes are text, so nobody needs the weights of the asked model (Zou et al. 2023). "
    "The first row has the same prompts without a suffix. The last row counts a prompt only if the answers are harmless with every suffix "
    "that was found on another model. A low rate off the diagonal shows that this model can be attacked by such a suffix. A high rate "
    "shows only that these suffixes, with this budget, did not work."
)


def section(view: View) -> Section | None:
    """Show the harmless rates, models on which suffixes were found by models that were asked; None without any."""
    sets = [name for name in view.sets(TRANSFER) if found_on(name)]
    if not sets:
        return None
    models = view.measured()
    lines = [_line(view, models, "no suffix", WITHOUT_SUFFIX)]
    for name in sets:
        attack, source = found_on(name) or ("", "")
        lines.append(_line(view, models, f"{attack}, found on {view.title(source)}", name, attack, source))
    last = [rate(view.cell(model, TRANSFER, WORST_CASE, WORST_TRANSFERRED_RATE)) for model in models]
    lines.append(Line("all found on other models", last, key=WORST_CASE))
    used = [k for k in range(len(models)) if any(line.cells[k] for line in lines)]
    lines = [replace(line, cells=[line.cells[k] for k in used]) for line in lines if any(line.cells)]
    heads = [view.title(models[k]) for k in used]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    return Section(
        "Suffixes found on other models", table, " ".join([_NOTE, *_left_out(view, sets)]), corner="Found on"
    )


def _line(view: View, models: list[str], title: str, name: str, attack: str = "", source: str = "") -> Line:
    cells: list[Shown | None] = []
    for model in models:
        own = bool(source) and model == source
        shown = rate(
            view.cell(model, ATTACK, attack, HARMLESS_RATE) if own else view.cell(model, TRANSFER, name, HARMLESS_RATE)
        )
        cells.append(replace(shown, note="itself") if own and shown else shown)
    return Line(title, cells, key=name)


def _left_out(view: View, sets: list[str]) -> list[str]:
    """Say which suffixes were not asked, or were changed by a tokenizer; the counts are those of one asked model."""
    meanings = {
        "empty": "had an empty suffix and were not asked",
        "unfit": "had no suffix, because it could not be separated from the prompt, and were not asked",
        "changed": "had a suffix that the asked model's tokenizer cannot write, and were asked nevertheless",
    }
    said = []
    for kind in COUNTS:
        counted = {
            (name, model): int(cell.value or 0)
            for name in sets
            for model in view.measured()
            if (cell := view.cell(model, TRANSFER, name, f"{kind}_suffixes")) and cell.value
        }
        if counted:
            shown = ", ".join(
                f"{count} ({name}, asked of {view.title(model)})" for (name, model), count in counted.items()
            )
            said.append(f"Prompts that {meanings[kind]}: {shown}.")
    return said
