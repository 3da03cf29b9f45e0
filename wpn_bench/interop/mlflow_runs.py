"""Export to MLflow: one run with settings, digests and files, and within it one run with the metrics of each model."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from wpn_bench.interop import tracked
from wpn_bench.runs.finished import Run

EXPERIMENT = "wpn-bench"
_PARAM_LENGTH = 6000  # MLflow's limit, in characters
_AT_ONCE = 1000  # MLflow's limit of metrics per call


def export(run: Run, out: Path | None) -> list[str]:
    """Log a run to MLflow at `MLFLOW_TRACKING_URI`.

    The experiment is `MLFLOW_EXPERIMENT_NAME`, or by default `wpn-bench`.

    Args:
        run: The run.
        out: A folder to use as a local store instead of the tracking URI.

    Returns:
        A line that names the MLflow run.

    Raises:
        UserError: MLflow is not installed.
    """
    if out is not None:
        # MLflow supports a local folder only if this variable is set.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        from mlflow import MlflowClient
    except ImportError as e:
        raise tracked.lacking("mlflow", "mlflow") from e
    client: Any = MlflowClient(tracking_uri=out.absolute().as_uri() if out else None)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    params, tags = tracked.of_run(run)
    parent = _log(client, experiment, run.name, params, tags, {})
    for file in tracked.files(run):
        client.log_artifact(parent, str(file))
    for model in tracked.of_models(run):
        nested = model.tags | {"mlflow.parentRunId": parent}
        _log(client, experiment, model.title, model.params, nested, model.metrics)
    return [f"MLflow run {parent} in the experiment {name}, with {len(run.models)} models"]


def _log(
    client: Any, experiment: str, name: str, params: dict[str, str], tags: dict[str, str], metrics: dict[str, float]
) -> str:
    """Create a finished MLflow run and return its id."""
    from mlflow.entities import Metric, Param

    made: str = client.create_run(experiment, run_name=name, tags=tags).info.run_id
    now = int(1000 * time.time())
    client.log_batch(made, params=[Param(key, value[:_PARAM_LENGTH]) for key, value in params.items()])
    every = [Metric(key, value, now, 0) for key, value in metrics.items()]
    for first in range(0, len(every), _AT_ONCE):
        client.log_batch(made, metrics=every[first : first + _AT_ONCE])
    client.set_terminated(made)
    return made
