"""MLflow and W&B: what is told is what stands in results.json. Each is tested where its package is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.core.files import write_json
from wpn_bench.interop import tracked
from wpn_bench.runs.files import Row
from wpn_bench.runs.finished import Run, load_run

Cli = Callable[..., Any]
DIGEST = "ab" * 32


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Base and two models (one without a value), one seed and the row over it; a judge in brackets, a rate at a threshold."""
    where = ("harmless", "in_domain")
    rows = [
        Row("base", None, *where, "harmless_rate", 0.2, 10, 0.05, 0.5),
        Row("wpn:mean", 0, *where, "harmless_rate", 0.7, 10, 0.4, 0.9),
        Row("wpn:mean", None, *where, "harmless_rate", 0.9, 10, 0.6, 0.98, 0.7, 0.3, 0.9, 0.02),
        Row("wpn:mean", None, *where, "harmless_rate@0.1", 0.5, 10),
        Row("wpn:mean", None, *where, "harmless_rate[classifier:x,label=y]", 0.8, 10),
        Row("ga", None, "benchmark", "copa", "accuracy", None, 0),
        Row("ga", None, "benchmark", "nine", "accuracy", 0.5, 90),
    ]
    about = {"name": "a run", "model": "lab", "seeds": [0], "command": "wpn-bench full", "judge": "detoxify:lab"}
    models = {
        "base": {"title": "Base model", "method": None, "status": "ok"},
        "wpn:mean": {"title": "WPN (mean)", "method": "wpn", "status": "ok", "config": {"steps": 3},
                     "digest": {"0": DIGEST}},
        "ga": {"title": "Gradient ascent", "method": "ga", "status": "ok", "config": {"steps": 4}},
    }  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    metrics = [row.json() for row in rows]
    write_json(folder / "results.json", {"schema_version": 1, "run": about, "models": models, "metrics": metrics})
    write_json(folder / "manifest.json", {"wpn_bench": "0.1.0", "config_digest": DIGEST, "model": {"digest": DIGEST}})
    (folder / "report.html").write_text("<p>report</p>")
    return load_run(folder)


WPN = {
    "harmless/in_domain/harmless_rate": 0.9,
    "harmless/in_domain/harmless_rate.ci_low": 0.6,
    "harmless/in_domain/harmless_rate.ci_high": 0.98,
    "harmless/in_domain/harmless_rate.delta": 0.7,
    "harmless/in_domain/harmless_rate.p_value": 0.02,
    "harmless/in_domain/harmless_rate_classifier_x_label_y": 0.8,
}


def test_the_rows_over_all_seeds_are_told(run: Run) -> None:
    by_model = {one.model: one for one in tracked.of_models(run)}
    assert list(by_model) == ["base", "wpn:mean", "ga"]
    assert by_model["wpn:mean"].metrics == WPN
    assert by_model["ga"].metrics == {"benchmark/nine/accuracy": 0.5}
    assert by_model["wpn:mean"].tags["wpn_bench.weights.seed0"] == DIGEST
    assert by_model["wpn:mean"].params == {"steps": "3"}


@pytest.mark.parametrize("service", ["mlflow", "wandb"])
def test_a_service_that_is_not_installed(cli: Cli, run: Run, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    monkeypatch.setitem(sys.modules, service, None)
    said = cli("export", run.folder, "--format", service)
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"wpn-bench: --format {service}: the package {service} is not installed; pip install 'wpn-bench[{service}]'\n"
    )


def test_an_unknown_format(cli: Cli, run: Run) -> None:
    said = cli("export", run.folder, "--format", "mlfow")
    assert said.code == 2
    assert said.err == "wpn-bench: unknown export format 'mlfow'; choose from lm-eval, mlflow, wandb\n"


@pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install mlflow-skinny"
)
def test_mlflow_has_nested_runs_with_metrics_params_tags_and_files(cli: Cli, run: Run, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    said = cli("export", run.folder, "--format", "mlflow", "--out", tmp_path / "store")
    assert said.code == 0, said.err
    client = MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("wpn-bench").experiment_id
    found = {one.info.run_name: one for one in client.search_runs([experiment])}
    assert set(found) == {"a run", "Base model", "WPN (mean)", "Gradient ascent"}
    parent = found["a run"]
    assert parent.info.run_id in said.out
    assert parent.data.params["judge"] == "detoxify:lab"
    assert parent.data.tags["wpn_bench.config_digest"] == DIGEST
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", "results.json", "manifest.json"}
    wpn = found["WPN (mean)"]
    assert wpn.data.metrics == WPN
    assert wpn.data.params == {"steps": "3"}
    assert wpn.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert wpn.data.tags["wpn_bench.weights.seed0"] == DIGEST
    assert {one.info.status for one in found.values()} == {"FINISHED"}


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install wandb")
def test_wandb_offline_has_a_run_for_each_model(cli: Cli, run: Run, tmp_path: Path) -> None:
    said = cli("export", run.folder, "--format", "wandb", "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 4
    logged = sorted((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logged) == 4
    for words in ("harmless/in_domain/harmless_rate.delta", "WPN (mean)", DIGEST, "benchmark/nine/accuracy"):
        assert any(words.encode() in file.read_bytes() for file in logged), words
