"""Compute a model's rates and accuracy after several training steps, for the training curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wpn_bench.analysis import stats
from wpn_bench.analysis.benchmark_rows import benchmark_rows, read_documents
from wpn_bench.analysis.metric_rows import Measurement, prompt_rows, read_samples
from wpn_bench.runs.files import Row
from wpn_bench.runs.metrics import (
    ACCURACY,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    COHERENT_HARMLESS_RATE,
    HARMLESS_RATE,
    IN_DOMAIN,
    MACRO_ACCURACY,
)

CURVE_METRICS = (HARMLESS_RATE, COHERENT_HARMLESS_RATE, MACRO_ACCURACY)


def curve_rows(points: Mapping[tuple[int, int], Sequence[Measurement]], threshold: float) -> list[dict[str, Any]]:
    """Return the training curve of one model.

    Args:
        points: The measurements for each (seed, step).
        threshold: Threshold of the deciding judge.

    Returns:
        One row for each seed, step and metric. Rows with seed None are means over seeds, at the steps that every seed
        has.
    """
    rows: list[dict[str, Any]] = []
    for (seed, step), found in points.items():
        asked = [m for m in found if m.suite == IN_DOMAIN]
        measured = [r for r in prompt_rows(read_samples(asked, threshold), threshold) if r.metric in CURVE_METRICS]
        of_tasks = benchmark_rows(read_documents(m for m in found if m.suite == BENCHMARK))
        # With a single task there is no macro average, so its accuracy is used.
        of_tasks = [r for r in of_tasks if r.metric == ACCURACY]
        macro = [r for r in of_tasks if r.set == BENCHMARK_AVERAGE] or of_tasks
        measured += [replace(r, metric=MACRO_ACCURACY) for r in macro]
        rows += [_point(r, seed, step) for r in measured]
    steps = [{step for (s, step) in points if s == seed} for seed in {s for s, _ in points}]
    for step in sorted(set.intersection(*steps)) if steps else []:
        for metric in CURVE_METRICS:
            of_seeds = [r for r in rows if (r["step"], r["metric"]) == (step, metric) and r["seed"] is not None]
            values = [r["value"] for r in of_seeds if r["value"] is not None]
            if len(of_seeds) == 1:
                rows.append({**of_seeds[0], "seed": None})
            elif values:
                mean = stats.over_seeds(values, 0.0, 1.0)
                n = sum(r["n"] for r in of_seeds)
                rows.append(_point(Row("", None, "", "", metric, mean.value, n, mean.low, mean.high), None, step))
    return rows


def _point(row: Row, seed: int | None, step: int) -> dict[str, Any]:
    kept = row.json()
    return {"seed": seed, "step": step} | {k: kept[k] for k in ("metric", "value", "n", "ci_low", "ci_high")}
