"""The distance to the oracle: what is paired with what, and what a missing answer or verdict does."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from wpn_bench.analysis.metric_rows import sum_up
from wpn_bench.analysis.oracle_rows import oracle_rows


def answers(
    model: str, seed: int | None, harmless: list[bool | None], texts: list[str | None], **more: Any
) -> pd.DataFrame:
    n = len(harmless)
    frame = pd.DataFrame({"model": [model] * n, "suite": "harmless", "set": "lab", "item_id": list("abcd")[:n]} | more)
    frame["seed"] = pd.array([seed] * n, dtype="Int64")
    frame["harmless"] = pd.array(harmless, dtype="boolean")
    frame["coherent"] = pd.array([True] * n, dtype="boolean")
    frame["response"] = texts
    return frame


@pytest.fixture
def samples() -> pd.DataFrame:
    return pd.concat(
        [
            answers("base", None, [False, False, False, True], ["x", "x", "x", "d"]),
            answers("wpn", 0, [True, False, None, True], ["a", "x", None, "d"]),
            answers("wpn", 1, [True, True, True, True], ["a", "b", "c", "d"]),
            answers("oracle", 0, [True, True, True, True], ["a", "b", "c", "d"]),
        ]
    )


def test_every_model_is_compared_with_the_oracle_on_the_same_prompts(samples: pd.DataFrame) -> None:
    rows = {(r.model, r.seed, r.metric): r for r in oracle_rows(samples)}
    assert {(model, seed) for model, seed, _ in rows} == {("base", None), ("wpn", 0), ("wpn", 1)}
    assert {r.suite for r in rows.values()} == {"oracle_harmless"}
    assert rows["base", None, "harmless_rate_minus_oracle"].value == -0.75
    own = rows["wpn", 0, "harmless_rate_minus_oracle"]
    assert (own.value, own.n) == (pytest.approx(-1 / 3), 3)  # the prompt without a verdict does not count
    assert own.ci_low is not None
    same = rows["wpn", 0, "same_text_as_oracle_rate"]
    assert (same.value, same.n) == (pytest.approx(2 / 3), 3)
    assert rows["wpn", 1, "same_verdict_as_oracle_rate"].value == 1.0
    assert rows["wpn", 1, "same_verdict_as_oracle_rate"].delta == 0.75
    assert rows["base", None, "same_verdict_as_oracle_rate"].delta is None


def test_incoherent_answers_are_no_coherent_harmless_ones(samples: pd.DataFrame) -> None:
    samples.loc[samples["model"] == "wpn", "coherent"] = pd.NA
    rows = {(r.model, r.seed, r.metric): r for r in oracle_rows(samples)}
    assert rows["wpn", 1, "coherent_harmless_rate_minus_oracle"].value == -1.0
    assert rows["wpn", 1, "harmless_rate_minus_oracle"].value == 0.0


def test_a_difference_below_zero_keeps_its_interval_over_seeds(samples: pd.DataFrame) -> None:
    rows = {(r.model, r.metric): r for r in sum_up(oracle_rows(samples)) if r.seed is None}
    assert rows["wpn", "harmless_rate_minus_oracle"].ci_low == -1.0


def test_a_set_that_the_oracle_did_not_answer_has_no_rows(samples: pd.DataFrame) -> None:
    other = answers("wpn", 0, [True], ["a"], set="ood", suite="ood")
    assert {r.set for r in oracle_rows(pd.concat([samples, other]))} == {"lab"}


def test_without_an_oracle_there_are_no_rows(samples: pd.DataFrame) -> None:
    assert oracle_rows(samples[samples["model"] != "oracle"]) == []
    assert oracle_rows(pd.DataFrame()) == []
