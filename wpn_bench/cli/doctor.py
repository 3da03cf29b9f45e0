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
            "--plan",
            help="List the jobs of the run and how long they will take, estimated from earlier jobs in the store.",
        ),
    ] = False,
    fleet: Annotated[
        int, typer.Option(help="Number of machines like this one for --plan. Each executes one job at a time.", min=1)
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check before a run what would work on this machine: libraries, memory, disk, hub, judge. No weights are loaded.

    [bold]wpn-bench doctor -m facebook/opt-2.7b --allow-pickle --methods wpn,npo[/bold]

    [bold]wpn-bench doctor -m facebook/opt-2.7b --plan --fleet 8[/bold]     expected jobs and hours

    The exit code is 0 if the run would work, and 2 if something would fail.
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
