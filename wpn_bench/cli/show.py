"""The command `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli.options import split_all_names


def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Show only these prompt sets, attacks, benchmarks or suites (repeatable, or with commas)."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", help="Show only these metrics, named as in results.json (repeatable, or with commas)."
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Use no colours (the default without a terminal).")] = False,
) -> None:
    """Show a finished run in the terminal: the verdict, the table of headline metrics, and what failed.

    [bold]wpn-bench show RUN --set ood --metric refusal_rate[/bold]  show only these results
    """
    from wpn_bench.report import show as report_show

    report_show.show(run, sets=split_all_names(sets), metrics=split_all_names(metrics), plain=plain)
