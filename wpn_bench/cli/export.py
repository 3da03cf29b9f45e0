"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli import completion, libraries
from wpn_bench.cli.options import Given, named_options, takes
from wpn_bench.errors import UserError


@takes(named_options("trust_remote_code"))
def export(
    given: Given,
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="lm-eval (its results files), mlflow or wandb.",
            autocompletion=completion.one_of(completion.export_formats),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output folder (default: RUN/lm-eval; mlflow and wandb use their environment variables).",
        ),
    ] = None,
) -> None:
    """Export a finished run to other tools: lm-eval's results files, an MLflow run, a W&B run.

    This exports measured results. Training curves are sent during a run, with the option `--report-to` of `full`.
    """
    libraries.configure_libraries()
    from wpn_bench.core import consent
    from wpn_bench.interop import FORMATS
    from wpn_bench.runs.finished import load_run

    if format_ not in FORMATS:
        raise UserError(f"unknown export format {format_!r}", f"choose from {', '.join(FORMATS)}")
    with consent.granted(code=given["trust_remote_code"]):
        for line in FORMATS.get(format_)(load_run(run), out):
            print(line)
