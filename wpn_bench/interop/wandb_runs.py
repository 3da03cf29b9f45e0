"""Export to Weights & Biases: a group with one run for each model, and one run with the files as an artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wpn_bench.interop import tracked
from wpn_bench.runs.finished import Run

PROJECT = "wpn-bench"


def export(run: Run, out: Path | None) -> list[str]:
    """Log a run to the W&B project `WANDB_PROJECT`, or by default `wpn-bench`.

    Args:
        run: The run.
        out: A folder for offline files, which `wandb sync` can send later. `WANDB_MODE=offline` also sends nothing.

    Returns:
        Lines that name the W&B runs.

    Raises:
        UserError: The package wandb is not installed.
    """
    try:
        import wandb
    except ImportError as e:
        raise tracked.lacking("wandb", "wandb") from e
    params, tags = tracked.of_run(run)
    common: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "group": run.name,
        "mode": "offline" if out else None,
        "dir": out,
        "reinit": "finish_previous",
        "settings": wandb.Settings(console="off", silent=True),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    lines = []
    with wandb.init(**common, name=run.name, job_type="run", config=params | tags) as whole:
        artifact = wandb.Artifact("".join(c if c.isalnum() or c in "-_." else "-" for c in run.name), type="wpn-bench")
        for file in tracked.files(run):
            artifact.add_file(str(file))
        whole.log_artifact(artifact)
        lines.append(f"W&B run {whole.id} in the project {common['project']}, group {run.name}")
    for model in tracked.of_models(run):
        described = model.params | model.tags
        with wandb.init(**common, name=model.title, job_type="model", config=described) as one:
            one.summary.update(model.metrics)
            lines.append(f"W&B run {one.id}: {model.title}")
    wandb.teardown()  # wait for its service, which may still be writing after a run has ended
    return lines
