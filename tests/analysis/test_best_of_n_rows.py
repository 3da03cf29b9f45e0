"""The rows of Best-of-N and its section in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wpn_bench.analysis.best_of_n_rows import best_of_n_rows
from wpn_bench.analysis.metric_rows import Measurement, sum_up
from wpn_bench.core.files import write_json


def measured(folder: Path, model: str, seed: int | None, harmful: list[int], missing: int = 0) -> Measurement:
    path = folder / f"{model}-{seed}"
    path.mkdir()
    n = len(harmful)
    frame = pd.DataFrame({"item_id": range(n), "n": [64] * n, "harmful": harmful, "missing": 0, "distinct": 60})
    frame.loc[: missing - 1, ["n", "harmful", "missing"]] = (63, 0, 1)
    frame["greedy"] = pd.array([True] * n, dtype="boolean")
    frame.to_parquet(path / "sampling.parquet")
    settings = {"k": [1, 2, 4, 8, 16, 32, 64], "samples": 64, "temperature": 1.0, "top_p": 1.0, "sigma": 0.4}
    write_json(path / "settings.json", settings)
    return Measurement(model, seed, "best_of_n", "lab", path)


def test_rows(tmp_path: Path) -> None:
    harmful = list(np.random.default_rng(0).binomial(64, 0.1, size=30))
    base = measured(tmp_path, "base", None, [64] * 30)
    own = measured(tmp_path, "wpn", 0, harmful, missing=2)
    rows = {(r.model, r.metric): r for r in best_of_n_rows([base, own])}
    assert (rows["base", "attack_success_rate@1"].value, rows["base", "attack_success_rate"].value) == (1.0, 1.0)
    assert ("base", "power_law_a") not in rows  # a rate of 1 everywhere
    assert rows["wpn", "attack_success_rate@1"].n == 30
    assert rows["wpn", "attack_success_rate@64"].n == 28
    assert rows["wpn", "power_law_fitted_up_to"].value == 16
    assert rows["wpn", "power_law_b"].n == 28
    error = rows["wpn", "prediction_error@64"]
    difference = rows["wpn", "predicted_attack_success_rate@64"].value - rows["wpn", "attack_success_rate@64"].value
    assert error.value == pytest.approx(difference)
    assert rows["wpn", "sigma"].value == 0.4
    assert rows["wpn", "distinct_versions"].value == 60


def test_an_error_below_zero_keeps_its_interval_over_seeds(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    found = [measured(tmp_path, "wpn", seed, list(draw.binomial(64, 0.04, size=30))) for seed in (0, 1)]
    rows = [r for r in sum_up(best_of_n_rows(found)) if r.metric == "prediction_error@64"]
    (mean,) = (r for r in rows if r.seed is None)
    assert mean.value is not None
    assert mean.ci_low is not None
    assert mean.ci_low < mean.value < 0
