"""Write benchmark results in the format of lm-eval's `--output_path --log_samples`, for tools that read this format.

There is one `results_*.json` for each model and seed, and one `samples_*.jsonl` for each task.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wpn_bench.core.paths import path_inside
from wpn_bench.errors import UserError
from wpn_bench.runs.files import AGAIN, BASE, MANIFEST
from wpn_bench.runs.finished import Run

_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*")


def export(run: Run, out: Path | None) -> list[str]:
    """Write the benchmark results in lm-eval's format.

    Args:
        run: The run.
        out: Output folder; None uses `RUN/lm-eval`.

    Returns:
        The paths of the files.

    Raises:
        UserError: The run has no benchmarks, or the data of a task is not available any more or has changed since the
            run.
    """
    from wpn_bench.benchmarks.replay import replay, save

    if run.documents.empty:
        raise UserError(f"{run.folder} contains no benchmark documents", "export a run of `full` or `benchmarks`")
    folder = out or path_inside(run.folder, "lm-eval")
    manifest = run.complete().manifest
    config = manifest["config"]
    if lacking := {"benchmark_folders", "dtype", "benchmark_batch_size"} - {*config}:
        raise UserError(f"{run.folder / MANIFEST} is damaged: its config has no {min(lacking)}", AGAIN)
    if config.get("apply_chat_template"):
        raise UserError(
            "benchmarks in a chat template cannot be exported, because the run did not store the prompts that lm-eval's"
            " files contain",
            "run lm-eval with --apply_chat_template, or export a run without this option",
        )
    tasks = {short: (one["task"], one["revision"]) for short, one in manifest["tasks"].items()}
    if odd := [task for task, _ in tasks.values() if not _FILE_NAME.fullmatch(str(task))]:
        raise UserError(f"{odd[0]!r} is not a valid name of a task", "export a run that wpn-bench wrote")
    lines = []
    for (model, seed), answers in run.documents.groupby(["model", "seed"], sort=False, dropna=False):
        name = _name(str(model), None if model == BASE else int(str(seed)), run)
        by_task = {tasks[short]: found for short, found in answers.groupby("task", sort=False)}
        results = replay(by_task, config["benchmark_folders"], limit=run.results["run"]["limit"])
        results["config"] |= {
            "model": "wpn-hf",
            "model_args": _model_args(run, str(model), seed, config["dtype"]),
            "batch_size": config["benchmark_batch_size"],
            "device": run.manifest["hardware"]["device"],
            "limit": run.results["run"]["limit"],
        }
        lines += [str(path) for path in save(results, folder, name)]
    return lines


def _name(model: str, seed: int | None, run: Run) -> str:
    several = len(run.results["run"]["seeds"]) > 1
    name = f"{model.replace(':', '-')}{f'-seed{seed}' if several and seed is not None else ''}"
    if not _FILE_NAME.fullmatch(name):
        raise UserError(f"{model!r} is not a valid name of a model", "export a run that wpn-bench wrote")
    return name


def _model_args(run: Run, model: str, seed: Any, dtype: str) -> dict[str, Any]:
    """Return the `model_args` that lm-eval would have recorded."""
    asked = run.manifest["model"]
    folder = None if model == BASE else run.results["models"][model].get("folder", {}).get(str(seed))
    revision = {} if folder or not asked["revision"] else {"revision": asked["revision"]}
    return {"pretrained": folder or asked["asked"], "dtype": dtype} | revision
