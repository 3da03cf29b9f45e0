"""The command `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wpn_bench.cli.app import app
from wpn_bench.cli.options import (
    AllowPickle,
    ConfigFile,
    Device,
    Dtype,
    GradientCheckpointing,
    Judge,
    Limit,
    Lora,
    Methods,
    MixedPrecision,
    Model,
    Offline,
    Offload,
    Out,
    Preset,
    Revision,
    Seeds,
    StoreDir,
    TrustRemoteCode,
    _agreed,
    _go_offline,
    _judges,
    _pick_methods,
    _positive,
    _preset,
    _seeds,
    _settle,
    _training,
)
from wpn_bench.errors import EXIT_USER


@app.command()
def doctor(
    model: Model = None,
    revision: Revision = None,
    preset: Preset = None,
    config: ConfigFile = None,
    methods: Methods = None,
    judge: Judge = None,
    seeds: Seeds = None,
    device: Device = None,
    dtype: Dtype = None,
    offload: Offload = None,
    lora: Lora = None,
    mixed_precision: MixedPrecision = None,
    gradient_checkpointing: GradientCheckpointing = False,
    limit: Limit = None,
    offline: Offline = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    out: Out = None,
    store: StoreDir = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="The jobs of the run and the time they will take, from what the store has measured."
        ),
    ] = False,
    fleet: Annotated[
        int, typer.Option(help="For --plan: how many workers like this machine, each with one job at a time.", min=1)
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="For tools.")] = False,
) -> None:
    """What would work here and what would not, before a run: libraries, memory, disk, hub, judge. Loads no weights.

    [bold]wpn-bench doctor -m facebook/opt-2.7b --allow-pickle --methods wpn,npo[/bold]

    [bold]wpn-bench doctor -m facebook/opt-2.7b --plan --fleet 8[/bold]     jobs and hours to expect

    Exit code 0 when all is well, 2 when something would fail.
    """
    _settle()
    if offline:
        _go_offline()
    from wpn_bench import config as configuration
    from wpn_bench.core import consent
    from wpn_bench.jobs.store import default_store
    from wpn_bench.preflight import doctor as examination

    base = configuration.build(_preset(preset, model), config)
    changes: dict[str, Any] = {
        "training": base.training | _training(lora, mixed_precision, gradient_checkpointing, None),
        "model": model,
        "revision": revision,
        "methods": _pick_methods(methods, base.methods),
        **_judges(judge),
        "seeds": _seeds(seeds),
        "device": device,
        "dtype": dtype,
        "limit": _positive("--limit", limit),
        "offload": offload,
        **_agreed(trust_remote_code, allow_pickle),
    }
    given = {k: v for k, v in changes.items() if v is not None}
    settings = base.model_dump() | given
    if methods is not None:
        settings["curve"] = None
    final = configuration.from_settings(settings)
    if plan:
        from wpn_bench.core.progress import reporter
        from wpn_bench.pipeline import forecast

        forecast.show(forecast.forecast(final, store or default_store(), fleet, reporter(quiet=json_)), json_)
        return
    runs = out.parent if out else Path("runs")
    with consent.granted(code=final.trust_remote_code, pickles=final.allow_pickle):
        findings = examination.run_checks(examination.DoctorContext(final, store or default_store(), runs))
    examination.print_diagnostics(findings, json_)
    if examination.has_failures(findings):
        raise typer.Exit(EXIT_USER)
