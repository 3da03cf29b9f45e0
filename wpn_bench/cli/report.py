"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli.options import split_names


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several to compare.")],
    format_: Annotated[
        str,
        typer.Option("--format", help="html, md, json, csv, comma separated (docs/report.md says what each holds)."),
    ] = "html,md",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the files (default: the run's own; of several runs, `comparison` beside the first).",
        ),
    ] = None,
) -> None:
    """Write a finished run's reports again from its stored rows, or compare several runs.

    [bold]wpn-bench report runs/today --format json,csv[/bold]        for programs

    [bold]wpn-bench report runs/monday runs/friday[/bold]             compared, and paired where they were asked the same
    """
    from wpn_bench.report import compare_runs, render

    names = split_names(format_)
    written = render(runs[0], names, out) if len(runs) == 1 else compare_runs(runs, names, out)
    for path in written:
        print(path)
