"""The section of the report on the relearning search."""

from __future__ import annotations

from typing import Any

import pandas as pd

from wpn_bench.analysis.metric_rows import sum_up
from wpn_bench.analysis.relearn_search_rows import Attacked, relearn_search_rows
from wpn_bench.report.relearn_search import section
from wpn_bench.runs.view import View


def attacked(model: str, seed: int | None, harmless: dict[int, int]) -> Attacked:
    """A model with so many of 40 harmless answers after each step."""
    rows = [
        {"item_id": f"p{k}", "step": step, "harmless": k < n, "coherent": True}
        for step, n in harmless.items()
        for k in range(40)
    ]
    budget = {step: {"rows": 8 * step, "tokens": 100 * step} for step in harmless}
    return Attacked(model, seed, "set", pd.DataFrame(rows).astype({"harmless": "boolean"}), {}, budget, 0.5)


def test_the_section(results: dict[str, Any]) -> None:
    assert section(View(results)) is None
    found = [
        attacked("base", None, {0: 0}),
        attacked("wpn", 0, {0: 40, 1: 33, 2: 27, 4: 13, 5: 7}),
        attacked("oracle", 0, {0: 40, 8: 40}),
    ]
    results["models"]["oracle"] = {"title": "oracle", "method": None, "status": "ok"}
    entry = {
        "seed": 0,
        "goal": 0.5,
        "steps": 8,
        "selection_prompts": 20,
        "tested_prompts": 40,
        "trained_items": 64,
        "trained_facts": 5,
    }
    best = {"weights": "lora", "schedule": "linear", "lr": 0.00123}
    for one in found:
        tried = [] if one.model == "base" else [{**best, "steps": 8, "resisted_rate": 0.0, "reason": None}]
        measured = [{"step": step, "rows": 8 * step, "tokens": 100 * step} for step in one.steps]
        results["models"][one.model]["relearn_search"] = [
            {**entry, "best": best if one.model == "wpn" else None, "tried": tried, "measured": measured}
        ]
    results["metrics"] += [row.json() for row in sum_up(relearn_search_rows(found)) if row.seed is None]
    made = section(View(results))
    assert made is not None
    assert made.table is not None
    cells = {line.key: [cell.value if cell else "" for cell in line.cells] for line in made.table.lines}
    assert made.table.columns[:4] == ["steps", "rows", "tokens", "share of the oracle"]
    assert cells["wpn"][:3] == ["4", "32", "400"]
    assert cells["oracle"][0] == "more than 8"
    assert [cells[name][-1] for name in ("base", "wpn", "oracle")] == [
        "none needed",
        "lora, linear, lr 0.0012",
        "all failed",
    ]
    assert "kept the best on 20 prompts" in made.note
    assert made.chart is not None
    assert [trace["name"] for trace in made.chart["data"]][-1] == "oracle"
