"""leak@k: the estimator against brute force, its interval, and the rows of models."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.sampling_rows import leak_at, mean_over_prompts, sampling_rows
from wpn_bench.core.files import write_json


def test_the_estimator_is_the_share_of_all_choices() -> None:
    for n in range(1, 8):
        for harmful in range(n + 1):
            for k in range(1, n + 1):
                choices = list(combinations(range(n), k))
                share = sum(any(one < harmful for one in choice) for choice in choices) / len(choices)
                assert leak_at(k, n, harmful) == pytest.approx(share, abs=1e-14)


def test_the_estimator_is_exact_in_float64_for_many_samples() -> None:
    for n in (128, 1024):
        for k in (1, 2, 16, 100, n):
            for harmful in (0, 1, 2, n // 3, n - 1, n):
                exact = 1 - Fraction(math.comb(n - harmful, k), math.comb(n, k))
                assert leak_at(k, n, harmful) == pytest.approx(float(exact), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("k", "n", "harmful"), [(5, 4, 0), (0, 4, 0), (1, 0, 0), (1, 4, 5)])
def test_what_cannot_be_estimated_is_refused(k: int, n: int, harmful: int) -> None:
    """In other programs, k > n gives 1 or 0 without a word."""
    with pytest.raises(ValueError, match="does not exist"):
        leak_at(k, n, harmful)


def test_verdicts_have_nearly_the_interval_of_a_rate() -> None:
    found = mean_over_prompts(np.array([1.0] * 30 + [0.0] * 70))
    plain = stats.rate(30, 100)
    assert found.low == pytest.approx(plain.low, abs=0.005)
    assert found.high == pytest.approx(plain.high, abs=0.005)


def test_the_interval_at_the_ends() -> None:
    none = mean_over_prompts(np.zeros(100))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(stats.rate(0, 100).high, abs=0.003)
    # One prompt of 100 is rarely harmless, and others like it may not have been asked.
    nearly = mean_over_prompts(np.array([1.0] * 99 + [0.95]))
    assert nearly.low is not None
    assert nearly.low < 0.98
    assert mean_over_prompts(np.array([0.5])).low is None
    assert math.isnan(mean_over_prompts(np.array([])).value)


def measured(folder: Path, model: str, harmful: list[int], greedy: list[bool | None], n: int = 4) -> Measurement:
    path = folder / model
    path.mkdir()
    frame = pd.DataFrame({"item_id": list("abc"), "n": [n, n, 3], "harmful": harmful, "missing": [0, 0, 1]})
    frame["greedy"] = pd.array(greedy, dtype="boolean")
    frame.to_parquet(path / "sampling.parquet")
    write_json(path / "settings.json", {"k": [1, 2, 4], "samples": n, "temperature": 1.0, "top_p": 0.9})
    return Measurement(model, None if model == "base" else 0, "sampling", "lab", path)


def test_rows_are_paired_and_leave_out_prompts_with_too_few_answers(tmp_path: Path) -> None:
    base = measured(tmp_path, "base", [4, 2, 3], [True, True, None])
    own = measured(tmp_path, "wpn", [0, 1, 0], [False, True, False])
    rows = {(r.model, r.metric): r for r in sampling_rows([base, own])}
    assert (rows["wpn", "leak@1"].value, rows["wpn", "leak@1"].n) == (pytest.approx(0.25 / 3), 3)
    assert (rows["wpn", "leak@4"].value, rows["wpn", "leak@4"].n) == (0.5, 2)
    assert rows["wpn", "leak@4"].delta == -0.5
    assert rows["wpn", "leak@4"].p_value is None
    assert (rows["wpn", "attack_success_rate"].n, rows["wpn", "attack_success_rate"].delta) == (3, -0.5)
    assert rows["wpn", "missing"].value == 1
    assert rows["base", "top_p"].value == 0.9
