"""Print a finished run to the terminal (`wpn-bench show`).

Each text of a run is printed on one line and not interpreted as markup.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.core.registry import close_matches
from wpn_bench.errors import UserError
from wpn_bench.report import tables
from wpn_bench.report.cells import Line, Shown, Table, row
from wpn_bench.report.render import failures
from wpn_bench.report.verdict import sentences
from wpn_bench.runs.finished import Run
from wpn_bench.runs.view import View, one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NAME, FIGURE = 22, 18  # widths of a name and of a number in characters
_COLOURS = {"good": "green", "bad": "red", "pass": "green", "fail": "red", "inconclusive": "yellow"}
_LEGEND = (
    "Next to each figure is the change against base on the same items, in points (perplexity: in per cent). Below it is the "
    "95 % interval of the figure itself. * means p < 0.05; for a mean of several sets, the interval of the change excludes zero."
)


def show(run: Path, *, sets: Sequence[str] = (), metrics: Sequence[str] = (), plain: bool = False) -> None:
    """Print the verdict, the headline table and the failures of a run, or some of its metric rows.

    Args:
        run: The run folder.
        sets: Print only rows of these sets or suites.
        metrics: Print only rows of these metrics.
        plain: Use no colours.

    Raises:
        UserError: The folder has no results, or the results have no such set or metric.
    """
    found = Run.read(run)
    view = found.view
    console = _console(plain)
    if sets or metrics:
        _rows(console, view, sets, metrics)
        return
    about = view.run
    facts = [f"{name} {about[name]}" for name in ("model", "preset", "judge") if about.get(name)]
    facts += [f"seeds {', '.join(map(str, about['seeds']))}"] if about.get("seeds") else []
    facts += [f"only the first {about['limit']} items of each set"] if about.get("limit") else []
    facts += ["embedded lab: says nothing about a real model"] if about.get("lab") else []
    _print(console, one_line(about.get("name") or run.name), "bold")
    _print(console, one_line("; ".join(facts)), "dim")
    for sentence in sentences(view):
        console.print()
        _print(console, one_line(f"{sentence.question} {sentence.answer}"), "bold")
        for part in sentence.parts if len(sentence.parts) > 1 else filter(None, (sentence.text,)):
            _print(console, one_line(f"- {part}" if len(sentence.parts) > 1 else part))
    table = tables.headline(view, {})
    if table.lines:
        console.print()
        _headline(console, table)
        _print(console, f"{_LEGEND} Items behind a figure: {tables.items(table)}.", "dim")
    _listed(console, "Failed", (f"{item['job']}: {item['reason']}" for item in failures(view)))
    skipped = about.get("skipped") or []
    counts = (f", {item['n']} items" if item.get("n") else "" for item in skipped)
    _listed(console, "Skipped", (f"{i['set']}{n}: {i['reason']}" for i, n in zip(skipped, counts, strict=True)))


def _console(plain: bool) -> Console:
    from rich.console import Console

    coloured = not plain and sys.stdout.isatty()
    return Console(color_system="auto" if coloured else None, highlight=False, markup=False, emoji=False)


def _print(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(text, style), soft_wrap=False)


def _listed(console: Console, title: str, items: Iterable[str]) -> None:
    for i, item in enumerate(items):
        if not i:
            console.print()
            _print(console, title, "bold")
        _print(console, f"- {one_line(item)}")


# --- the headline table ----------------------------------------------------------------------------------------------


def _headline(console: Console, found: Table) -> None:
    """Print as many columns side by side as fit into the terminal, and the rest below them."""
    from rich.table import Table as Grid

    at_once = max(1, (max(console.width, 40) - NAME) // (FIGURE + 1))
    for start in range(0, len(found.columns), at_once):
        chosen = range(start, min(start + at_once, len(found.columns)))
        grid = Grid(box=None, pad_edge=False, padding=(0, 1, 1, 0))
        grid.add_column("", min_width=NAME, max_width=NAME, overflow="fold")
        for i in chosen:
            grid.add_column(found.columns[i], min_width=FIGURE, max_width=FIGURE, overflow="fold")
        for line in found.lines:
            grid.add_row(_name(line), *(_figure(line.cells[i]) for i in chosen))
        console.print(grid)


def _name(line: Line) -> Text:
    from rich.text import Text

    text = Text(line.name, "bold" if line.key == "base" else "")
    return text.append(f"\n({line.flag})", "red") if line.flag else text


def _figure(cell: Shown | None) -> Text:
    from rich.text import Text

    if not cell:
        return Text(cell.value if cell is not None else "not measured", "dim")
    text = Text(cell.value)
    if cell.delta:
        text.append(f" {cell.delta}{' *' if cell.mark else ''}", _COLOURS.get(cell.tone, ""))
    if cell.ci:
        text.append(f"\n{cell.ci}", "dim")
    if cell.pill:
        text.append(f"\n{cell.pill}", _COLOURS.get(cell.pill, ""))
    if cell.note:
        text.append(f"\n{one_line(cell.note)}", "dim")
    return text


# --- rows of results.json --------------------------------------------------------------------------------------------


def _rows(console: Console, view: View, sets: Sequence[str], metrics: Sequence[str]) -> None:
    """Print value, change and n of each model for each set and metric."""
    known = view.rows()
    _known("set", sets, [name for suite, name, _ in known for name in (suite, name)])
    _known("metric", metrics, [metric for _, _, metric in known])
    wanted = [
        (suite, name, metric)
        for suite, name, metric in known
        if (not sets or {suite, name} & set(sets)) and (not metrics or metric in metrics)
    ]
    if not wanted:
        raise UserError("no row has both this set and this metric", "leave out --set or --metric to see all rows")
    for i, where in enumerate(wanted):
        if i:
            console.print()
        _print(console, one_line(f"{where[1]}, {where[2]} ({where[0]})"), "bold")
        _models(console, view, where)


def _models(console: Console, view: View, where: tuple[str, str, str]) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title, width in (("model", 16), ("value", 8), ("", 16), ("change", 9), ("", 16)):
        grid.add_column(title, min_width=width, overflow="fold")
    grid.add_column("n", justify="right", min_width=7)
    for model in view.every_measured():
        cell = view.cell(model, *where)
        shown = row(where[2], cell)
        if cell is None or shown is None:
            continue
        change = Text(f"{shown.delta}{' *' if shown.mark else ''}", _COLOURS.get(shown.tone, ""))
        n = f"{cell.n:,}" if cell.n else ""
        grid.add_row(Text(model), shown.value, Text(shown.ci, "dim"), change, Text(shown.delta_ci, "dim"), n)
    console.print(grid)


def _known(option: str, asked: Sequence[str], names: Sequence[str]) -> None:
    known = list(dict.fromkeys(names))
    for name in asked:
        if name not in known:
            near = close_matches(name, known)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:40])}"
            raise UserError(f"the run has no {option} {name!r}", hint)
