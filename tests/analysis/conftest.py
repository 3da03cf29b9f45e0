"""Artifacts of measurements, made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from wpn_bench.analysis.metric_rows import Measurement


@pytest.fixture
def samples(tmp_path: Path) -> Callable[..., Measurement]:
    """`samples("wpn", 0, [0.1, nan], ...)`: an artifact with those scores, one item each."""

    def make(
        model: str,
        seed: int | None,
        score: list[float],
        *,
        ids: list[str] | None = None,
        coherent: list[bool | None] | None = None,
        refusal: list[bool] | None = None,
        suite: str = "harmless",
        name: str = "in_domain",
    ) -> Measurement:
        n = len(score)
        frame = pd.DataFrame(
            {
                "item_id": ids or [f"i{k}" for k in range(n)],
                "prompt": "p",
                "input": "q",
                "response": [None if math.isnan(t) else "r" for t in score],
                "score": score,
                "coherent": pd.array(coherent or [None if math.isnan(t) else True for t in score], dtype="boolean"),
                "nll": 1.0,
                "repetition": 0.0,
                "refusal": refusal or [False] * n,
                "reason": ["prompt too long" if math.isnan(t) else None for t in score],
                "n_tokens": 3,
            }
        )
        folder = tmp_path / f"{suite}-{name}-{model}-{seed}"
        folder.mkdir()
        frame.to_parquet(folder / "samples.parquet", index=False)
        return Measurement(model, seed, suite, name, folder)

    return make


@pytest.fixture
def documents(tmp_path: Path) -> Callable[..., Measurement]:
    def make(model: str, seed: int | None, task: str, correct: list[int], ids: list[int] | None = None) -> Measurement:
        folder = tmp_path / f"{task}-{model}-{seed}"
        folder.mkdir()
        frame = pd.DataFrame({"doc_id": ids or list(range(len(correct))), "correct": [bool(c) for c in correct]})
        frame.to_parquet(folder / "documents.parquet", index=False)
        return Measurement(model, seed, "benchmark", task, folder)

    return make
