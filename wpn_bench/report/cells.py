"""The records of a table in the report. Numbers are already formatted as text, and missing values are None."""

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
    """A formatted cell. As a boolean, it is false if it contains no number.

    Attributes:
        value: The value.
        ci: Its 95 % interval.
        delta: Change against base.
        delta_ci: 95 % interval of the change.
        p: P-value of the change.
        mark: Whether the change is significant.
        tone: `good` or `bad` if the change is significant, else empty.
        n: Number of items; None if unknown, or if it is shown once for the row or column.
        note: Small print below the value.
        pill: A verdict, shown as a badge.
        absent: Whether `value` is the reason why there is no number.
    """

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
    absent: bool = False

    def __bool__(self) -> bool:
        return not self.absent


NOT_AVAILABLE = Shown("not available", absent=True)  # the model does not support this measurement


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table.

    Attributes:
        name: Heading of the row.
        cells: One cell for each column; None if it was not measured.
        small: Small print below the heading.
        key: The model, set or task, by which templates recognise the row.
        flag: How the model is damaged; empty if it is not.
        colour: Colour of the model in the charts.
        chosen: Whether the row is highlighted, such as the chosen trial of tuning.
    """

    name: str
    cells: list[Shown | None]
    small: str = ""
    key: str = ""
    flag: str = ""
    colour: str = ""
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the report.

    Attributes:
        columns: The headings.
        lines: The rows.
        hints: Text printed below each heading.
        shared_n: The number of items of each column, if all its cells have the same; it is shown once in the heading.
            Otherwise None.
    """

    columns: list[str]
    lines: list[Line]
    hints: list[str]
    shared_n: list[int | None]


def rate(cell: Cell | None, better: int = 1) -> Shown | None:
    """Format a proportion in per cent and its change in percentage points.

    Args:
        cell: The proportion, from 0 to 1.
        better: 1 if higher is better, -1 if lower is better, 0 for neither.

    Returns:
        The formatted cell; None if there is no value.
    """
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
    """Format the cell of any metric.

    A proportion is formatted as by `rate`. Any other number and its change are formatted in their own unit.

    Args:
        metric: Name of the metric.
        cell: Its cell.

    Returns:
        The formatted cell; None if there is no value.
    """
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
    """Return whether a change is an improvement.

    Args:
        cell: The cell with the change.
        better: 1 if higher is better, -1 if lower is better, 0 for neither.

    Returns:
        `good` or `bad` if the change is significant, else an empty text.
    """
    if not better or not cell.delta or not cell.significant:
        return ""
    return "good" if cell.delta * better > 0 else "bad"


def with_shared_n(line: Line) -> Line:
    """If all cells of a row have the same n, show it once below the row's heading."""
    counts = {cell.n for cell in line.cells if cell}
    if len(counts) != 1 or None in counts:
        return line
    cells = [replace(cell, n=None) if cell else cell for cell in line.cells]
    together = f"n = {counts.pop():,}"
    return replace(line, cells=cells, small=f"{line.small}; {together}" if line.small else together)


def make_table(columns: list[str], lines: list[Line], hints: list[str] | None = None) -> Table:
    """Make a table. If all cells of a column have the same n, it is shown once in the heading.

    Args:
        columns: The headings.
        lines: The rows. An n that the heading shows is removed from their cells.
        hints: Text printed below each heading; None prints nothing.

    Returns:
        The table.
    """
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
