"""Sections that stages add to the report (`Stage.section`). Templates escape all their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wpn_bench.core.registry import import_attribute
from wpn_bench.jobs.stages import STAGES, stage_of
from wpn_bench.report.tables import Line, Shown, Table
from wpn_bench.runs.finished import Run


@dataclass(frozen=True, slots=True)
class Section:
    """A section of report.html and, without its chart, of report.md.

    Attributes:
        title: Heading of the section.
        table: Its table (`plain_table` makes one from texts).
        note: A paragraph below the table.
        chart: A Plotly figure as plain values.
        corner: Heading of the table's first column.
        caption: Caption of the table for screen readers; if empty, the title is used.
        id: Anchor of the section in the page. The report sets it.
    """

    title: str
    table: Table | None = None
    note: str = ""
    chart: dict[str, Any] | None = None
    corner: str = "Model"
    caption: str = ""
    id: str = ""


def plain_table(columns: Sequence[str], rows: Mapping[str, Sequence[str | None]]) -> Table:
    """Make a table of texts.

    Args:
        columns: Headings of the columns.
        rows: For each row heading, a text for each column; None if it was not measured.

    Returns:
        The table.
    """
    lines = [
        Line(name, [None if text is None else Shown(text) for text in texts], key=name) for name, texts in rows.items()
    ]
    return Table(list(columns), lines, [""] * len(columns), [None] * len(columns))


def contributed(run: Run) -> list[Section]:
    """Return the sections of those stages that the run used and that are installed.

    If a plug-in fails to make its section, a note replaces the section, so that the report is still written.
    """
    listed = run.manifest.get("stages")
    stages = {job.get("stage") for job in listed if isinstance(job, dict)} if isinstance(listed, list) else set()
    found: list[Section] = []
    for name in STAGES:
        if name not in stages:
            continue
        try:
            stage = stage_of(name)
            made = import_attribute(stage.section)(run.view) if stage.section else None
            if made is not None:
                found.append(replace(made, id=f"stage-{name}"))
        except Exception as e:
            if STAGES.is_ours(name):
                raise
            note = f"This section could not be made ({type(e).__name__}: {e})."
            found.append(Section(name, note=note, id=f"stage-{name}"))
    return found
