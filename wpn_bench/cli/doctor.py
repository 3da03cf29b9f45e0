"""The command `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wpn_bench.cli import libraries
from wpn_bench.cli.options import Given, config_from, doctor_options, takes
from wpn_bench.errors import EXIT_USER


@takes(doctor_options)
def doctor(
    given: Given,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="List the jobs of the run and the time they will take, estimated from times in the store."
        ),
    ] = False,
    fleet: Annotated[
        int, typer.Option(help="For --plan: how many workers like this machine, each with one job at a time.", min=1)
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check before a run what would work here: libraries, memory, disk, hub, judge. Loads no weights.

    [bold]wpn-bench doctor -m facebook/opt-2.7b --allow-pickle --methods wpn,npo[/bold]

    [bold]wpn-bench doctor -m facebook/opt-2.7b --plan --fleet 8[/bold]     jobs and hours to expect

    Exit code 0 when all is well, 2 when something would fail.
    """
    libraries.configure_libraries()
    if given["offline"]:
        libraries.go_offline()
    from wpn_bench.core import consent
    from wpn_bench.jobs.store import default_store
    from wpn_bench.preflight import doctor as examination

    config, store = config_from(given), given["store"] or default_store()
    if plan:
        from wpn_bench.core.progress import reporter
        from wpn_bench.pipeline import forecast

        forecast.show(forecast.forecast(config, store, fleet, reporter(quiet=json_)), json_)
        return
    runs = given["out"].parent if given["out"] else Path("runs")
    with consent.granted(code=config.trust_remote_code, pickles=config.allow_pickle):
        findings = examination.run_checks(examination.DoctorContext(config, store, runs))
    examination.print_diagnostics(findings, json_)
    if examination.has_failures(findings):
        raise typer.Exit(EXIT_USER)
