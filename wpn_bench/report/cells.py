"""The records that a table of the report is made of: every number is text already, and what is missing is None."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wpn_bench.core.numbers import (
    interval,
    p_value,
    percent,
    plain,
    points,
    signed,
    signed_interval,
)
from wpn_bench.runs.metrics import (
    metric_of,
)
from wpn_bench.runs.view import Cell


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell as it is printed. `tone` is 'good' or 'bad' where the change is significant, else ''."""

    value: str
    ci: str = ""
    delta: str = ""
    delta_ci: str = ""
    p: str = ""
    mark: bool = False
    tone: str = ""
    n: int | None = None
    note: str = ""
    pill: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row: its name, small print beneath it, and a cell (or a hole) per column."""

    name: str
    cells: list[Shown | None]
    small: str = ""
    key: str = ""
    flag: str = ""
    colour: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    columns: list[str]
    lines: list[Line]
    hints: list[str]
    shared_n: list[int | None]  # the n that all cells of a column have, shown once in its head


def rate(cell: Cell | None, better: int = 1) -> Shown | None:
    """A share 0..1 in per cent with its change in points. `better` is the direction that is good, 0 for neither."""
    if cell is None or cell.value is None:
        return None
    return Shown(
        value=percent(cell.value),
        ci=interval(cell.ci_low, cell.ci_high),
        delta=points(cell.delta).removesuffix(" points") if cell.delta is not None else "",
        delta_ci=signed_interval(cell.delta_ci_low, cell.delta_ci_high),
        p=p_value(cell.p_value),
        mark=cell.delta is not None and cell.significant,
        tone=tone_of(cell, better),
        n=cell.n,
        note=cell.note,
    )


def row(metric: str, cell: Cell | None) -> Shown | None:
    """Any row of the results: a share as `rate` writes it, another number as it is, its change in its own unit."""
    facts = metric_of(metric)
    if cell is None or cell.value is None or facts.is_share:
        return rate(cell, facts.better)
    low, high = cell.ci_low, cell.ci_high
    return Shown(
        value=plain(cell.value),
        ci=f"[{plain(low)}, {plain(high)}]" if low is not None and high is not None else "",
        delta=signed(cell.delta, 1.0, 3) if cell.delta is not None else "",
        delta_ci=signed_interval(cell.delta_ci_low, cell.delta_ci_high, 1.0, 3),
        p=p_value(cell.p_value),
        mark=cell.delta is not None and cell.significant,
        tone=tone_of(cell, facts.better),
        n=cell.n,
    )


def tone_of(cell: Cell, better: int) -> str:
    if not better or not cell.delta or not cell.significant:
        return ""
    return "good" if cell.delta * better > 0 else "bad"


def with_shared_n(line: Line) -> Line:
    """Moves the n that all cells of a row share beneath the row's name."""
    counts = {cell.n for cell in line.cells if cell}
    if len(counts) != 1 or None in counts:
        return line
    cells = [replace(cell, n=None) if cell else None for cell in line.cells]
    return replace(line, cells=cells, small=f"n = {counts.pop():,}")


def make_table(columns: list[str], lines: list[Line], hints: list[str] | None = None) -> Table:
    shared: list[int | None] = []
    for i in range(len(columns)):
        counts = {cell.n for line in lines if (cell := line.cells[i])}
        only = counts.pop() if len(counts) == 1 else None
        shared.append(only)
        if only is not None:
            for line in lines:
                if cell := line.cells[i]:
                    line.cells[i] = replace(cell, n=None)
    return Table(columns, lines, hints or [""] * len(columns), shared)
