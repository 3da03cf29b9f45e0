from __future__ import annotations

import pandas as pd

from wpn_bench.analysis import cost_rows


def test_costs() -> None:
    rows = cost_rows.cost_rows({("wpn", "train"): (1.23456, 2)}, 512.04)
    assert [(r.model, r.suite, r.set, r.metric, r.value, r.n) for r in rows] == [
        ("wpn", "cost", "train", "seconds", 1.235, 2),
        ("base", "cost", "run", "peak_memory_mb", 512.0, 1),
    ]


def test_tokens_are_counted_over_seeds_and_sets() -> None:
    rows = {"model": ["base", "wpn", "wpn", "wpn"], "seed": [None, 0, 1, 1], "set": ["a", "a", "a", "b"]}
    found = cost_rows.token_rows(pd.DataFrame({**rows, "n_tokens": [5, 1, 2, 4]}))
    assert [(r.model, r.set, r.metric, r.value, r.n) for r in found] == [
        ("base", "generate", "tokens", 5, 1),
        ("wpn", "generate", "tokens", 7, 3),
    ]
    assert cost_rows.token_rows(pd.DataFrame()) == []
