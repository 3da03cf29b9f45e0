"""The commands that run all stages or some of them: full, evaluate, train, harmless, attack and benchmarks."""

from __future__ import annotations

import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wpn_bench.cli import libraries
from wpn_bench.cli.crash import typed_command
from wpn_bench.cli.options import Given, all_options, config_from, fleet_from, takes
from wpn_bench.errors import EXIT_FAILED, EXIT_USER, UserError

if TYPE_CHECKING:
    from wpn_bench.config import RunConfig, Stage
    from wpn_bench.core.progress import Reporter
    from wpn_bench.jobs.executor import Fleet


@takes(all_options)
def full(given: Given) -> None:
    """Train WPN and the baseline methods, measure all models, and write the report.

    [bold]wpn-bench full[/bold]                                small lab model, offline, a few minutes

    [bold]wpn-bench full -m facebook/opt-125m[/bold]           a real model with the preset `paper`

    [bold]wpn-bench full -m DIR --forget mine.jsonl[/bold]     your model and your forget set

    If a run was stopped, repeat the command. Finished work is not done again.
    """
    run_stages(given, "train", "harmless", "attack", "benchmarks")


@takes(all_options)
def evaluate(given: Given) -> None:
    """Measure finished models and compare them with the base, without training.

    [bold]wpn-bench evaluate -m BASE --candidate mine=DIR[/bold]                        a folder or a LoRA adapter

    [bold]wpn-bench evaluate -m BASE --candidate mine=org/name@v1[/bold]                a model of the hub

    [bold]wpn-bench evaluate -m BASE --candidate api=openai:http://HOST/v1#NAME[/bold]  an endpoint

    Then `wpn-bench check RUN --model mine` checks the model against the base of the same run.
    """
    run_stages(given, "harmless", "attack", "benchmarks", trains=False)


@takes(all_options)
def train(given: Given) -> None:
    """Only train the methods; the models are saved in the store."""
    run_stages(given, "train")


@takes(all_options)
def harmless(given: Given) -> None:
    """Measure only the prompt sets: harmless, coherent, refused. Only the methods in --methods are trained."""
    run_stages(given, "train", "harmless", trains=False)


@takes(all_options)
def attack(given: Given) -> None:
    """Measure only the attacked prompts. Only the methods in --methods are trained."""
    run_stages(given, "train", "attack", trains=False)


@takes(all_options)
def benchmarks(given: Given) -> None:
    """Measure only the benchmarks and held-out text. Only the methods in --methods are trained."""
    run_stages(given, "train", "benchmarks", trains=False)


def run_stages(given: Given, *stages: Stage, trains: bool = True) -> None:
    """Start a run.

    Args:
        given: Typed values of the options.
        *stages: Stages of the run.
        trains: Whether the methods of the preset are trained. If not, only those that the user named are trained.

    Raises:
        UserError: Methods were named for a command that trains nothing.
    """
    if given["methods"] and "train" not in stages:
        raise UserError(
            "evaluate trains nothing, so it does not accept --methods", "use `wpn-bench full` to train methods"
        )
    if not trains and given["methods"] is None:
        given = {**given, "methods": ""}
    from wpn_bench.core.progress import reporter
    from wpn_bench.jobs.store import default_store

    if given["offline"]:
        libraries.go_offline()
    fleet = fleet_from(given)
    config = config_from(given, stages=stages)
    out = given["out"] or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{folder_name(config.model)}"
    progress = reporter(verbose=given["verbose"], quiet=given["quiet"])
    run(config, out, given["store"] or default_store(), progress, force=given["force"], fleet=fleet)


def run(config: RunConfig, out: Path, store: Path, reporter: Reporter, *, force: bool, fleet: Fleet) -> None:
    """Execute a run, and print what failed, what was skipped and the verdict.

    Args:
        config: The validated settings.
        out: The run folder.
        store: Folder of the artifact store.
        reporter: Shows the progress.
        force: Whether to start although memory or disk space seem too small.
        fleet: Settings of the executor.

    Raises:
        typer.Exit: With exit code 1 if a job failed.
    """
    refuse_launcher()
    from wpn_bench.pipeline import runner
    from wpn_bench.report.verdict import verdict

    libraries.configure_libraries()
    # A cluster scheduler stops a job by SIGTERM. End as cleanly as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = runner.run(
        config, out=out, store=store, reporter=reporter, command=typed_command(), force=force, fleet=fleet
    )
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
        print_models(results["models"], out)
    if results["run"]["failed"]:
        raise typer.Exit(EXIT_FAILED)


def print_models(models: dict[str, dict[str, Any]], out: Path) -> None:
    """Print how the training of each model ended, and where the models are.

    Args:
        models: The models in the results of a run, by name.
        out: The run folder.
    """
    for name, model in models.items():
        if model["method"]:
            print(f"{name}: {model['status']}, {model['steps']} steps")
            for folder in model.get("folder", {}).values():
                print(f"model: {(out / folder).resolve()}")


def refuse_launcher() -> None:
    """Raise `UserError` in a process of `torchrun` or `accelerate launch`, as each process would do the whole run."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "LOCAL_RANK" not in os.environ:
        return
    if os.environ["LOCAL_RANK"] != "0":
        sys.exit(EXIT_USER)  # only the first process prints the error
    how = "--accelerate FILE" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else ""
    raise UserError(
        "this was started by a launcher (accelerate launch, torchrun), but a run starts its processes itself",
        f"type `{typed_command()} {how or '--processes ' + os.environ['WORLD_SIZE']}` alone",
    )


def folder_name(model: str) -> str:
    """Return the name of a model in a form that can be part of a folder name."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-")[:60] or "model"
