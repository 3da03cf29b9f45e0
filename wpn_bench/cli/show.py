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
            "--set", help="Only these prompt sets, attacks, benchmarks or suites (repeatable, or with commas)."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Only these metrics, named as in results.json (repeatable, or with commas)."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No colours (the default without a terminal).")] = False,
) -> None:
    """Show a finished run in the terminal: verdict, headline table, what failed.

    [bold]wpn-bench show RUN --set ood --metric refusal_rate[/bold]  shows these rows of its results
    """
    from wpn_bench.report import show as report_show

    report_show.show(run, sets=split_all_names(sets), metrics=split_all_names(metrics), plain=plain)
