"""The rows of the suite `cost`: seconds, tokens and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import COST

if TYPE_CHECKING:
    import pandas as pd


def cost_rows(
    seconds: Mapping[tuple[str, str], tuple[float, int]], peak_memory_mb: float, tokens: Sequence[Row] = ()
) -> list[Row]:
    """Return the rows of the suite `cost`.

    Args:
        seconds: For each (model, stage) the seconds of the first computation, also if the result came from the store,
            and the number of jobs.
        peak_memory_mb: Peak memory of the run in MB.
        tokens: The rows of `token_rows`.

    Returns:
        All rows of the suite.
    """
    rows = [
        Row(model, None, COST, stage, "seconds", round(total, 3), n) for (model, stage), (total, n) in seconds.items()
    ]
    rows += tokens
    rows.append(Row(BASE, None, COST, "run", "peak_memory_mb", round(peak_memory_mb, 1), 1))
    return rows


def token_rows(samples: pd.DataFrame) -> list[Row]:
    """Return the number of tokens in each model's `n` answers, over all seeds, sets and attacks."""
    if samples.empty:
        return []
    by_model = samples.groupby("model", sort=False)["n_tokens"]
    return [Row(str(model), None, COST, "generate", "tokens", int(t.sum()), len(t)) for model, t in by_model]
