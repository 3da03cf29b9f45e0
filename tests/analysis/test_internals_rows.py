"""The rows of hidden states and weights, and their section in the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from wpn_bench.analysis.internals_rows import internals_rows
from wpn_bench.analysis.metric_rows import Measurement, sum_up
from wpn_bench.report.internals import section
from wpn_bench.runs.view import View


def measured(folder: Path, model: str, seed: int | None, effect: float, change: float) -> Measurement:
    """A model whose second layer has an effect of `effect` nats, with 20 prompts and two layers."""
    path = folder / f"{model}-{seed}"
    path.mkdir()
    rows = [
        {
            "item_id": k,
            "layer": layer,
            "lens": -2.0 - layer * effect,
            "full": -2.0,
            "patched": -2.0 - (layer - 1) * effect,
        }
        for k in range(20)
        for layer in (1, 2)
    ]
    pd.DataFrame(rows).to_parquet(path / "layers.parquet")
    weights = [
        {"name": "embed", "layer": 0, "norm": 3.0, "change": 0.0, "stable_rank": float("nan")},
        {"name": "first", "layer": 1, "norm": 4.0, "change": change, "stable_rank": 2.0},
        {"name": "second", "layer": 2, "norm": 12.0, "change": 2 * change, "stable_rank": 7.0},
    ]
    pd.DataFrame(weights).to_parquet(path / "weights.parquet")
    return Measurement(model, seed, "internals", "set", path)


def test_rows_and_section(tmp_path: Path) -> None:
    found = [
        measured(tmp_path, "base", None, 0.0, 0.0),
        measured(tmp_path, "wpn", 0, 1.0, 0.4),
        measured(tmp_path, "wpn", 1, 3.0, 0.4),
        measured(tmp_path, "oracle", 0, 4.0, 1.0),
    ]
    rows = sum_up(internals_rows(found))
    values = {(r.model, r.seed, r.set, r.metric): r for r in rows}
    assert values["wpn", 0, "model", "depth_score"].value == pytest.approx(0.25)
    assert values["wpn", 1, "model", "depth_score"].value == pytest.approx(0.75)
    assert values["wpn", None, "model", "depth_score"].value == pytest.approx(0.5)
    assert values["oracle", 0, "model", "depth_score"].value == 1.0
    assert values["base", None, "model", "depth_score"].value == 0.0
    assert ("wpn", 0, "layer_1", "lost_share") not in values  # the oracle's first layer has no effect
    assert values["wpn", 0, "layer_2", "lost_share"].value == pytest.approx(0.25)
    loss = values["wpn", 0, "layer_2", "lens_loss"]
    assert (loss.value, loss.delta, loss.n) == (pytest.approx(4.0), pytest.approx(2.0), 20)
    assert values["wpn", 0, "model", "hidden_gap"].value == pytest.approx(1.0)
    # norms: sqrt(0.4^2 + 0.8^2) / sqrt(3^2 + 4^2 + 12^2); ranks weighted by squares: (0.16 * 2 + 0.64 * 7) / 0.8
    assert values["wpn", 0, "model", "weight_change"].value == pytest.approx(0.8**0.5 / 13)
    assert values["wpn", 0, "layer_1", "weight_change"].value == pytest.approx(0.1)
    assert values["wpn", 0, "model", "stable_rank"].value == pytest.approx(6.0)
    assert not any(r.model == "base" and r.metric in ("weight_change", "stable_rank") for r in rows)
    view = View(
        {"models": {name: {"title": name} for name in ("base", "wpn", "oracle")}, "metrics": [r.json() for r in rows]}
    )
    shown = section(view)
    assert shown is not None
    assert shown.table is not None
    assert shown.chart is not None
    assert shown.table.columns == ["loss", "hidden", "depth score", "change of the weights", "stable rank"]
    own = next(line for line in shown.table.lines if line.key == "wpn")
    assert [cell.value if cell else None for cell in own.cells] == ["6.00", "2.00", "50.0 %", "6.88 %", "6.00"]
    assert len(shown.chart["data"]) == 3


def test_without_an_oracle_there_is_no_depth_score(tmp_path: Path) -> None:
    rows = internals_rows([measured(tmp_path, "base", None, 0.0, 0.0), measured(tmp_path, "wpn", 0, 1.0, 0.4)])
    assert {r.metric for r in rows}.isdisjoint({"depth_score", "lost_share"})
    view = View(
        {"models": {name: {"title": name} for name in ("base", "wpn")}, "metrics": [r.json() for r in sum_up(rows)]}
    )
    shown = section(view)
    assert shown is not None
    assert shown.table is not None
    assert "depth score" not in shown.table.columns
    assert "needs a candidate with the name oracle" in shown.note
    assert section(View({"models": {}, "metrics": []})) is None
