"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli.options import split_names


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several run folders to compare.")
    ],
    format_: Annotated[
        str,
        typer.Option("--format", help="html, md, json, csv or junit, comma separated (docs/report.md describes them)."),
    ] = "html,md",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output folder (default: the run folder; for several runs, `comparison` next to the first run).",
        ),
    ] = None,
) -> None:
    """Write the reports of a finished run again from its stored results, or compare several runs.

    [bold]wpn-bench report runs/today --format json,csv[/bold]        for programs

    [bold]wpn-bench report runs/monday runs/friday[/bold]             compare two runs
    """
    from wpn_bench.report import compare_runs, render

    names = split_names(format_)
    written = render(runs[0], names, out) if len(runs) == 1 else compare_runs(runs, names, out)
    for path in written:
        print(path)
