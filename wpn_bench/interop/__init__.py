"""Export finished runs to other tools (`wpn-bench export RUN --format NAME`). Each format is one module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wpn_bench.core.registry import Registry
from wpn_bench.runs.finished import Run

# Exports a run to an output folder (None uses the tool's default). Returns lines that tell what was written and where.
Exporter = Callable[[Run, Path | None], list[str]]

FORMATS: Registry[Exporter] = Registry(
    "export_format",
    {
        "lm-eval": "wpn_bench.interop.lm_eval_files:export",
        "mlflow": "wpn_bench.interop.mlflow_runs:export",
        "wandb": "wpn_bench.interop.wandb_runs:export",
    },
)
