"""The commands about a finished run: report, show, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli import completion
from wpn_bench.cli.app import app
from wpn_bench.cli.options import TrustRemoteCode, _every, _names, _settle
from wpn_bench.errors import UserError


@app.command()
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
    """Write a finished run's reports again, from its stored rows; of several runs, what tells them apart.

    [bold]wpn-bench report runs/today --format json,csv[/bold]        for programs

    [bold]wpn-bench report runs/monday runs/friday[/bold]             side by side, paired where they asked the same
    """
    from wpn_bench.report import compare_runs, render

    names = _names(format_) or ()
    written = render(runs[0], names, out) if len(runs) == 1 else compare_runs(runs, names, out)
    for path in written:
        print(path)


@app.command()
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
        typer.Option("--metric", help="Only these metrics, as results.json has them (repeatable, or with commas)."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No colours; so it is without a terminal, too.")] = False,
) -> None:
    """Show a finished run in the terminal: verdict, headline table, what failed.

    [bold]wpn-bench show RUN --set ood --metric refusal_rate[/bold]  shows these rows of its results
    """
    from wpn_bench.report import show as shower

    shower.show(run, sets=_every(sets), metrics=_every(metrics), plain=plain)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="lm-eval (results files), mlflow, wandb.",
            autocompletion=completion.one_of(completion.export_formats),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder to write into (default: RUN/lm-eval; for mlflow and wandb where their environment variables say).",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """A finished run for other tools: lm-eval's results files, an MLflow run, a W&B run.

    This is of what was measured; for curves while training see `--report-to` of `full`.
    """
    _settle()
    from wpn_bench.core import consent
    from wpn_bench.interop import FORMATS
    from wpn_bench.runs.finished import load_run

    if format_ not in FORMATS:
        raise UserError(f"unknown export format {format_!r}", f"choose from {', '.join(FORMATS)}")
    with consent.granted(code=trust_remote_code):
        for line in FORMATS.get(format_)(load_run(run), out):
            print(line)
