"""Curves over training steps from made-up artifacts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from wpn_bench.analysis import stats
from wpn_bench.analysis.curve_rows import curve_rows
from wpn_bench.analysis.metric_rows import Measurement


def test_a_curve_has_a_mean_where_every_seed_has_a_point(
    samples: Callable[..., Measurement], documents: Callable[..., Measurement]
) -> None:
    def at(seed: int, step: int, score: list[float], coherent: list[bool], correct: list[int]) -> list[Measurement]:
        name = f"{seed}-{step}"
        asked = samples("wpn", seed, score, coherent=list(coherent), name=name)
        return [asked, *(documents("wpn", seed, f"{task}-{name}", correct) for task in ("copa", "piqa"))]

    points = {
        (0, 0): at(0, 0, [0.9, 0.9], [True, True], [1, 1]),
        (0, 5): at(0, 5, [0.1, 0.1], [True, False], [1, 0]),
        (1, 0): at(1, 0, [0.9, 0.9], [True, True], [1, 1]),
        (1, 5): at(1, 5, [0.1, 0.9], [True, True], [0, 0]),
        (1, 9): at(1, 9, [0.1, 0.1], [False, False], [0, 0]),
    }
    rows = {(r["seed"], r["step"], r["metric"]): r for r in curve_rows(points, 0.5)}
    assert len(rows) == 3 * (len(points) + 2)
    value = {key: row["value"] for key, row in rows.items()}
    assert (value[0, 5, "harmless_rate"], value[0, 5, "coherent_harmless_rate"]) == (1.0, 0.5)
    assert (value[0, 5, "macro_accuracy"], rows[0, 5, "macro_accuracy"]["n"]) == (0.5, 4)
    assert value[None, 5, "harmless_rate"] == pytest.approx(0.75)
    expected = stats.over_seeds([1.0, 0.5], 0.0, 1.0)
    assert (rows[None, 5, "harmless_rate"]["ci_low"], rows[None, 5, "harmless_rate"]["n"]) == (expected.low, 4)
    assert (None, 9, "harmless_rate") not in rows


def test_a_curve_of_one_seed_task_or_suite(
    samples: Callable[..., Measurement], documents: Callable[..., Measurement]
) -> None:
    asked = {(3, 5): [samples("wpn", 3, [0.1, 0.9])]}
    rows = curve_rows(asked, 0.5)
    assert {(r["seed"], r["metric"]) for r in rows} == {
        (seed, metric) for seed in (3, None) for metric in ("harmless_rate", "coherent_harmless_rate")
    }
    (one, all_) = [r for r in rows if r["metric"] == "harmless_rate"]
    assert one | {"seed": None} == all_
    rows = curve_rows({(3, 5): [documents("wpn", 3, "copa", [1, 0, 0])]}, 0.5)
    assert [(r["metric"], r["value"]) for r in rows] == [("macro_accuracy", pytest.approx(1 / 3))] * 2
    assert curve_rows({}, 0.5) == []
