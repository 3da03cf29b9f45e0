"""Compare several finished runs on one page.

The page shows headline metrics side by side, and the settings in which the runs differ. If two runs measured the same
items, it also shows the paired differences of the same method (see `pairing`). Only stored results are read, and no
model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from wpn_bench.analysis.pairing import Paired, pair
from wpn_bench.analysis.verdict import non_inferiority_of
from wpn_bench.errors import UserError
from wpn_bench.prompts import WORST_CASE
from wpn_bench.report import formats, tables
from wpn_bench.report import summary as summaries
from wpn_bench.report.cells import Shown, rate, row
from wpn_bench.report.render import failures, fitted
from wpn_bench.report.settings import Setting, settings
from wpn_bench.report.templates import environment, style
from wpn_bench.report.verdict import sentences
from wpn_bench.report.write import write_reports
from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import LabelledRun
from wpn_bench.runs.headline import HEADLINES, Headline
from wpn_bench.runs.metrics import ATTACK, BENCHMARK_AVERAGE, COHERENT_HARMLESS_RATE
from wpn_bench.runs.view import Cell, View, one_line

FOLDER = "comparison"
MOST = 12  # maximum number of runs on one page


@dataclass(frozen=True, slots=True)
class Entry:
    """A model in one of the runs, with a cell for each column (None if it was not measured)."""

    run: str
    cells: list[Shown | None]
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """The paired differences of two runs (`other` minus `first`), with notes.

    Attributes:
        other: Label of the other run.
        first: Label of the run that it is compared with.
        columns: (title, hint) of each headline metric.
        lines: (method, its seeds, one cell for each column).
        every: (set, metric, one cell for each method), for all paired metrics.
        methods: Titles of the methods.
        refused: (what was not paired, reason).
        notes: Notes for the reader.
    """

    other: str
    first: str
    columns: list[tuple[str, str]]
    lines: list[tuple[str, str, list[Shown | None]]]
    every: list[tuple[str, str, list[Shown | None]]]
    methods: list[str]
    refused: list[tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Comparison:
    """The compared runs.

    Attributes:
        runs: The runs. The first one is compared with each of the others.
        out: Folder of the reports.
        has_html: Whether that folder has, or will get, comparison.html.
    """

    runs: tuple[LabelledRun, ...]
    out: Path
    has_html: bool = False

    @cached_property
    def settings(self) -> list[Setting]:
        return settings(self.runs)

    @cached_property
    def pairs(self) -> list[Paired]:
        return [pair(self.runs[0], other) for other in self.runs[1:]]

    @cached_property
    def context(self) -> dict[str, Any]:
        """The values that comparison.html and comparison.md share."""
        columns, groups = _side_by_side(self.runs)
        return {
            "runs": [_card(run, self.out) for run in self.runs],
            "columns": columns,
            "groups": groups,
            "differ": [one for one in self.settings if not one.same],
            "same": [one for one in self.settings if one.same],
            "changes": [_change(one) for one in self.pairs],
            "margin": f"{100 * self.runs[0].view.margin:g}",
        }


def compare_runs(
    folders: Sequence[Path], names: tuple[str, ...] = formats.DEFAULT, out: Path | None = None
) -> list[Path]:
    """Write the comparison of several runs.

    Args:
        folders: The run folders. The first run is compared with each of the others.
        names: Names of the formats (see `formats.FORMATS`).
        out: Folder for the files; None uses `comparison` next to the first run.

    Returns:
        The paths of the files.

    Raises:
        UserError: There are fewer than two runs or too many, a folder is given twice or has no results, or a format is
            unknown or cannot show several runs.
    """
    wanted = formats.chosen(names)
    if not 2 <= len(folders) <= MOST:
        raise UserError(f"{len(folders)} runs cannot be compared on one page", f"give 2 to {MOST} run folders")
    for name, one in wanted.items():
        if one.several is None:
            raise UserError(
                f"the format {name!r} can only show a single run", "give one run folder, or another --format"
            )
    where = [folder.resolve() for folder in folders]
    twice = next((folder for i, folder in enumerate(where) if folder in where[:i]), None)
    if twice is not None:
        raise UserError(f"the run {twice.name} is given twice", "give each run once")
    runs = tuple(LabelledRun.read(folder, label=label) for label, folder in zip(labels(where), folders, strict=True))
    target = out or where[0].parent / FOLDER
    page = "html" in wanted or (target / formats.FORMATS["html"].together).exists()
    comparison = Comparison(runs, target, page)
    return write_reports({one.together: one.several for one in wanted.values() if one.several}, comparison, target)


def labels(folders: Sequence[Path]) -> list[str]:
    """Return the name of each folder, with as many parent folders as make the name unique."""
    depth = dict.fromkeys(folders, 1)
    while True:
        found = ["/".join(folder.parts[-depth[folder] :]) for folder in folders]
        clash = [folder for folder, label in zip(folders, found, strict=True) if found.count(label) > 1]
        if not clash:
            return [one_line(label) for label in found]
        for folder in clash:
            depth[folder] += 1


# --- the content -----------------------------------------------------------------------------------------------------


def _card(run: LabelledRun, out: Path) -> dict[str, Any]:
    """The summary of one run: its date, model, command, and the short answers of its verdict."""
    about = run.view.run
    page = run.folder / formats.FORMATS["html"].file
    return {
        "label": run.label,
        "link": _link(page, out) if page.is_file() else "",
        "created": str(about.get("created") or "")[:16].replace("T", " "),
        "model": str(about.get("model") or ""),
        "command": str(about.get("command") or ""),
        "lab": bool(about.get("lab")),
        "limit": about.get("limit"),
        "partial": bool(about.get("partial")),
        "failed": failures(run.view),
        "answers": [(one.question, one.answer) for one in sentences(run.view)],
    }


def _link(page: Path, out: Path) -> str:
    """Return the relative link from the comparison to a run's report.

    It is empty if it needs more than one step up, because such a link would reveal names of folders on this machine.
    """
    way = Path(os.path.relpath(page.resolve(), out.resolve()))
    return "" if way.parts[:2] == ("..", "..") else quote(str(way))


def _side_by_side(runs: Sequence[LabelledRun]) -> tuple[list[str], list[tuple[str, list[Entry]]]]:
    """Return the headline columns that at least one run has, and (title, entries of the runs) for each model."""
    found: dict[tuple[str, str], tuple[dict[str, Shown | None], str]] = {}
    order: dict[str, str] = {}
    for run in runs:
        table = tables.headline(run.view, {})
        for line in table.lines:
            cells = [
                c if c is None or c.n else replace(c, n=n) for c, n in zip(line.cells, table.shared_n, strict=True)
            ]
            found[run.label, line.key] = (dict(zip(table.columns, cells, strict=True)), line.flag)
            order.setdefault(line.key, line.name)
    columns = [one.title for one in HEADLINES if any(cells.get(one.title) for cells, _ in found.values())]
    groups = []
    for model, title in order.items():
        entries = [
            Entry(run.label, [found[run.label, model][0].get(c) for c in columns], found[run.label, model][1])
            for run in runs
            if (run.label, model) in found
        ]
        groups.append((title, entries))
    return columns, groups


def _under_every_attack(view: View) -> str:
    return f"coherent-harmless under all {len(view.sets('attack'))}, prompt by prompt"


def _worst_case(view: View, model: str) -> Cell | None:
    return view.cell(model, ATTACK, WORST_CASE, COHERENT_HARMLESS_RATE)


# The worst attack can differ between two runs. The worst case over all attacks is the same metric in both.
_PAIRED = tuple(
    Headline("every_attack", "Under every attack", _under_every_attack, _worst_case, ATTACK, set=WORST_CASE)
    if one.key == "worst_attack"
    else one
    if one.key == "out_of_distribution"
    else replace(one, hint=lambda _: "")  # other hints are left out, because they describe a change against base
    for one in HEADLINES
)


def _change(found: Paired) -> Change:
    view = paired_view(found)
    models = view.measured()
    used = [one for one in _PAIRED if any(one.of(view, model) for model in models)]
    lines = []
    for model in models:
        cells = [rate(one.of(view, model), one.better) for one in used]
        pills = [non_inferiority_of(view, model) or "" if one.key == BENCHMARK_AVERAGE else "" for one in used]
        cells = [replace(c, pill=pill) if c else None for c, pill in zip(cells, pills, strict=True)]
        lines.append((view.title(model), found.seeds.get(model, ""), cells))
    where = dict.fromkeys((row.suite, row.set, row.metric) for row in found.rows)
    every = []
    for suite, name, metric in where:
        cells = [row(metric, view.cell(model, suite, name, metric)) for model in models]
        every.append(("all attacks together" if name == WORST_CASE else name, metric, cells))
    return Change(
        found.other.label,
        found.first.label,
        [(one.title, one.hint(view)) for one in used],
        lines,
        every,
        [view.title(model) for model in models],
        found.refused,
        found.notes,
    )


def paired_view(found: Paired) -> View:
    """Return a view of the paired rows.

    From the other run's facts about models, it keeps only the titles, because all others compare with that run's base.
    """
    models = {name: {"title": found.other.view.title(name)} for name in found.other.view.models if name != BASE}
    return View({"run": found.first.view.run, "models": models, "metrics": [row.json() for row in found.rows]})


# --- the formats -----------------------------------------------------------------------------------------------------


def page(comparison: Comparison) -> str:
    """Return the text of comparison.html, a single file without scripts."""
    return str(environment().get_template("comparison.html.j2").render(comparison.context | {"style": style()}))


def markdown(comparison: Comparison) -> str:
    """Return the text of comparison.md, which has the same maximum length as report.md."""
    about = comparison.context | {"has_html": comparison.has_html}
    return fitted(environment().get_template("comparison.md.j2").render(about))


def summary(comparison: Comparison) -> str:
    """Return the text of comparison.json: the runs, their settings, headline metrics and paired differences."""
    runs = comparison.runs
    found = {
        "schema_version": summaries.SCHEMA_VERSION,
        "runs": [
            {"label": run.label, **summaries.about(run.view), "models": summaries.models(run.view)} for run in runs
        ],
        "settings": {
            "differ": {one.name: list(one.values) for one in comparison.settings if not one.same},
            "same": {one.name: one.values[0] for one in comparison.settings if one.same},
        },
        "paired": [
            {
                "run": one.other.label,
                "against": one.first.label,
                "seeds": one.seeds,
                "rows": [row.json() for row in one.rows],
                "not_paired": [{"what": what, "reason": reason} for what, reason in one.refused],
                "notes": one.notes,
            }
            for one in comparison.pairs
        ],
    }
    return summaries.text(found)


def metrics(comparison: Comparison) -> str:
    """Return the text of comparison.csv: the metric rows of all runs, with the run in the first column."""
    rows = ({"run": run.label, **row} for run in comparison.runs for row in run.results.get("metrics") or [])
    return summaries.table(rows, ("run",))
