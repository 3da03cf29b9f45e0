"""The commands that run: full, train, harmless, attack, benchmarks, prefetch."""

from __future__ import annotations

import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from wpn_bench.cli.app import app
from wpn_bench.cli.crash import _typed
from wpn_bench.cli.options import (
    AccelerateFile,
    Accumulation,
    AllowPickle,
    AttackFile,
    Attacks,
    BatchSize,
    Benchmarks,
    ConfigFile,
    CpusPerJob,
    Curve,
    Device,
    Dtype,
    ExecutorName,
    Force,
    Forget,
    GpusPerJob,
    GradientCheckpointing,
    Judge,
    JudgeCard,
    Limit,
    Lora,
    Margin,
    MaxNewTokens,
    Methods,
    MixedPrecision,
    Model,
    NearDuplicate,
    Offline,
    Offload,
    Out,
    Overlap,
    Preset,
    Processes,
    PromptKind,
    Prompts,
    Quiet,
    RayAddress,
    ReportTo,
    Revision,
    Seeds,
    Shards,
    StoreDir,
    TrustRemoteCode,
    Tune,
    Verbose,
    Workers,
    _agreed,
    _fleet,
    _go_offline,
    _judges,
    _names,
    _own_prompts,
    _pick_methods,
    _positive,
    _preset,
    _seeds,
    _settle,
    _training,
)
from wpn_bench.errors import EXIT_FAILED, EXIT_USER, UserError


def _command(stages: tuple[str, ...], summary: str, do: Any = None) -> Any:
    """A run command: the same options, all stages or some of them. `do`: what is done with it all (None: the run)."""

    def command(
        model: Model = None,
        revision: Revision = None,
        preset: Preset = None,
        config: ConfigFile = None,
        methods: Methods = None,
        forget: Forget = None,
        prompts: Prompts = None,
        prompt_kind: PromptKind = None,
        benchmarks: Benchmarks = None,
        attacks: Attacks = None,
        attack_file: AttackFile = None,
        judge: Judge = None,
        judge_card: JudgeCard = None,
        limit: Limit = None,
        seeds: Seeds = None,
        tune: Tune = None,
        curve: Curve = False,
        max_new_tokens: MaxNewTokens = None,
        batch_size: BatchSize = None,
        overlap: Overlap = None,
        near_duplicate: NearDuplicate = None,
        margin: Margin = None,
        device: Device = None,
        dtype: Dtype = None,
        offload: Offload = None,
        lora: Lora = None,
        mixed_precision: MixedPrecision = None,
        gradient_checkpointing: GradientCheckpointing = False,
        accumulation: Accumulation = None,
        processes: Processes = None,
        accelerate: AccelerateFile = None,
        report_to: ReportTo = None,
        offline: Offline = False,
        trust_remote_code: TrustRemoteCode = False,
        allow_pickle: AllowPickle = False,
        executor: ExecutorName = None,
        ray_address: RayAddress = None,
        workers: Workers = None,
        cpus_per_job: CpusPerJob = None,
        gpus_per_job: GpusPerJob = None,
        shards: Shards = None,
        out: Out = None,
        store: StoreDir = None,
        force: Force = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        from wpn_bench import config as configuration
        from wpn_bench.core.progress import reporter
        from wpn_bench.jobs.store import default_store

        if offline:
            _go_offline()
        fleet = _fleet(
            executor=executor,
            ray_address=ray_address,
            workers=_positive("--workers", workers),
            cpus_per_job=_positive("--cpus-per-job", cpus_per_job),
            gpus_per_job=gpus_per_job,
            shards=_positive("--shards", shards),
        )
        base = configuration.build(_preset(preset, model), config)
        changes: dict[str, Any] = {
            "training": base.training | _training(lora, mixed_precision, gradient_checkpointing, accumulation),
            "processes": _positive("--processes", processes),
            "accelerate": str(accelerate) if accelerate else None,
            "report_to": _names(report_to),
            "model": model,
            "revision": revision,
            "methods": _pick_methods(methods, base.methods),
            "forget": forget,
            "file_kind": prompt_kind,
            "benchmarks": _names(benchmarks),
            "attack_files": tuple(dict.fromkeys((*base.attack_files, *(attack_file or ())))),
            **_judges(judge),
            "judge_card": judge_card,
            "limit": _positive("--limit", limit),
            "seeds": _seeds(seeds),
            "tune": _positive("--tune", tune),
            "overlap": overlap,
            "near_duplicate": near_duplicate,
            "margin_points": margin,
            "device": device,
            "dtype": dtype,
            "offload": offload,
            "stages": stages,
            "benchmark_batch_size": _positive("--batch-size", batch_size),
            **_agreed(trust_remote_code, allow_pickle),
        }
        decoding = base.decoding.model_dump()
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value is not None:
                decoding[name] = _positive("--" + name.replace("_", "-"), value)
        settings = base.model_dump() | {k: v for k, v in changes.items() if v is not None}
        settings |= {"decoding": decoding}
        if attacks is not None:
            settings |= configuration.attack_settings(_names(attacks) or (), base)
        if methods is not None and settings["curve"] and (named := settings["curve"]["methods"]):
            # A curve of a method that was not picked is not wanted either.
            picked = [name for name in named if name in settings["methods"]]
            settings["curve"] = {**settings["curve"], "methods": picked} if picked else None
        if curve:
            settings["curve"] = settings["curve"] or {}
        if forget is not None and forget != base.forget:
            # Another forget set has other validation and test prompts; some of its own are held back unless given.
            settings |= {"in_domain": (), "validation": None}
        settings |= _own_prompts(prompts or [], settings)
        final = configuration.from_settings(settings)
        folder = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{_slug(final.model)}"
        do_it = do or _run
        do_it(final, folder, store or default_store(), reporter(verbose=verbose, quiet=quiet), force, fleet)

    command.__doc__ = summary
    return command


app.command("full")(
    _command(
        ("train", "harmless", "attack", "benchmarks"),
        """Train WPN and the baselines, measure all, write the report.

    [bold]wpn-bench full[/bold]                                on the embedded lab, offline, minutes

    [bold]wpn-bench full -m facebook/opt-125m[/bold]           a real model, the paper's preset

    [bold]wpn-bench full -m DIR --forget mine.jsonl[/bold]     your model, your forget set

    What is finished is not repeated: kill it and type the same command again.""",
    )
)
app.command("train")(_command(("train",), "Train the methods only; the models lie in the store."))
app.command("harmless")(_command(("train", "harmless"), "Prompt sets only: harmless, coherent, refused."))
app.command("attack")(_command(("train", "attack"), "Attacked prompts only."))
app.command("benchmarks")(_command(("train", "benchmarks"), "Benchmarks and held-out text only."))


def _prefetch(config: Any, out: Path, store: Path, reporter: Any, force: bool, fleet: Any) -> None:
    import shlex

    _settle()
    from wpn_bench.preflight import prefetch

    prefetch.show(prefetch.prefetch(config, reporter))
    words = [word for word in sys.argv[1:] if word not in ("prefetch", "--offline")]
    print(f"all is here; now, with or without network: {shlex.join(['wpn-bench', 'full', *words, '--offline'])}")


app.command("prefetch")(
    _command(
        ("train", "harmless", "attack", "benchmarks"),
        """Fetch all that a run needs: model, prompts, benchmarks, judges. It takes the options of `full`.

    [bold]wpn-bench prefetch -m facebook/opt-125m[/bold]                   where there is a network

    [bold]wpn-bench full -m facebook/opt-125m --offline[/bold]             where there is none

    What broke off goes on with the same command; what is here is not fetched again.""",
        lambda *given: _prefetch(*given),
    )
)


def _run(config: Any, out: Path, store: Path, reporter: Any, force: bool, fleet: Any) -> None:
    _refuse_launcher()
    from wpn_bench.pipeline import runner
    from wpn_bench.report.verdict import verdict

    _settle()
    # A scheduler that takes the machine away says so by SIGTERM: the end is as clean as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = runner.run(config, out=out, store=store, reporter=reporter, command=_typed(), force=force, fleet=fleet)
    for item in results["run"]["failed"]:
        print(f"failed: {item['job']}: {item['reason']}", file=sys.stderr)
    for item in results["run"]["skipped"]:
        what = f"{item['n']} prompts of {item['set']}" if item["n"] else item["set"]
        print(f"skipped: {what}: {item['reason']}", file=sys.stderr)
    print(f"report: {(out / 'report.html').resolve()}")
    if set(config.stages) & {"harmless", "benchmarks"}:
        for line in verdict(results):
            print(line)
    else:
        for name, model in results["models"].items():
            if model["method"]:
                print(f"{name}: {model['status']}, {model['steps']} steps")
                for folder in model.get("folder", {}).values():
                    print(f"model: {(out / folder).resolve()}")
    if results["run"]["failed"]:
        raise typer.Exit(EXIT_FAILED)


def _refuse_launcher() -> None:
    """A run is one process, which starts those that train; several of it would each do all of the work."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ:
        return
    if os.environ["LOCAL_RANK"] != "0":
        sys.exit(EXIT_USER)  # the first of them says it
    how = "--accelerate FILE" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else ""
    raise UserError(
        "this was started by a launcher (accelerate launch, torchrun), and a run starts its processes itself",
        f"type `{_typed()} {how or '--processes ' + os.environ['WORLD_SIZE']}` alone",
    )


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-")[:60] or "model"
