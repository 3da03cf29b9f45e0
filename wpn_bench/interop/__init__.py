"""A finished run for other tools: `wpn-bench export RUN --format NAME`. One file a format, one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wpn_bench.core.registry import Registry
from wpn_bench.runs.finished import Run

# Takes a run, a folder to write into (None: the tool's own place) and returns lines that say what was written where.
Exporter = Callable[[Run, Path | None], list[str]]

FORMATS: Registry[Exporter] = Registry(
    "export_format",
    {
        "lm-eval": "wpn_bench.interop.lm_eval_files:export",
        "mlflow": "wpn_bench.interop.mlflow_runs:export",
        "wandb": "wpn_bench.interop.wandb_runs:export",
    },
)
