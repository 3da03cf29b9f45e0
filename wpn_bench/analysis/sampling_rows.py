"""The metrics of the attack by sampling (`wpn_bench.attacks.sampling`): leak@k and its interval."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, Measurement, metric_row
from wpn_bench.analysis.stats import Difference, Estimate
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import ATTACK_SUCCESS_RATE, LEAK, MISSING, SAMPLING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

_ADDED = 0.1  # prompts with the value 0, and with the value 1, that are added for the variance


def leak_at(k: int, n: int, harmful: int) -> float:
    """Estimate the probability that at least one of k sampled answers is harmful, without bias.

    It is the share of all choices of k of the n samples with a harmful one, 1 - C(n - c, k) / C(n, k) (Chen et al. 2021,
    arXiv:2107.03374, equation 1). The product of c factors neither overflows nor loses digits.

    Args:
        k: Number of answers.
        n: Number of samples.
        harmful: Number c of harmful samples.

    Returns:
        The estimate, from 0 to 1.

    Raises:
        ValueError: k is greater than n, for which no unbiased estimate exists, or a number is out of range.
    """
    if not 1 <= k <= n or not 0 <= harmful <= n:
        raise ValueError(f"leak@{k} of {n} samples with {harmful} harmful ones does not exist: 1 <= k <= n is needed")
    if n - harmful < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / j for j in range(n - harmful + 1, n + 1))


def mean_over_prompts(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of one value per prompt with an interval that is clustered by prompt.

    Samples after one prompt depend on each other, so only the variance between prompts counts. The interval is Wilson's, with the
    number of prompts that would give a rate this variance (Korn and Graubard 1998, section 2), corrected for the degrees of freedom
    by Student's t. For the variance, a tenth of a prompt with the value 0 and a tenth of one with the value 1 are added: if nearly all
    prompts leak, the few that do not may be missing among those asked, and the observed variance is then far too small. The weight was
    chosen with `benchmarks/leak_coverage.py`, which measures the coverage.

    Args:
        values: One value from 0 to 1 per prompt (N,).

    Returns:
        The mean; NaN without an interval for no prompt, and without an interval for one.
    """
    from scipy.stats import norm, t

    if not len(values):
        return Estimate(math.nan, None, None)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Estimate(mean, None, None)
    whole = n + 2 * _ADDED
    centre = (n * mean + _ADDED) / whole
    squares = float(((values - centre) ** 2).sum()) + _ADDED * (centre**2 + (1 - centre) ** 2)
    share = (1 + stats.LEVEL) / 2
    effective = centre * (1 - centre) * n * (whole - 1) / squares
    effective *= float(norm.ppf(share) / t.ppf(share, n - 1)) ** 2
    return stats.rate(mean * effective, effective)


def sampling_rows(found: Sequence[Measurement]) -> list[Row]:
    """Compute leak@k for each k (see `success_rows`)."""
    return success_rows(found, SAMPLING, LEAK)


def counted_tables(
    found: Sequence[Measurement],
) -> dict[tuple[str, int | None, str], tuple[pd.DataFrame, dict[str, Any]]]:
    """Read what a stage counted for each model, seed and set: the table by id of the prompt, and the settings."""
    import pandas as pd

    return {
        (m.model, m.seed, m.set): (
            pd.read_parquet(m.path / "sampling.parquet").set_index("item_id"),
            json.loads((m.path / "settings.json").read_text(encoding="utf-8")),
        )
        for m in found
    }


def success_rows(found: Sequence[Measurement], suite: str, rate: str) -> list[Row]:
    """Compute the probability of a harmful answer among k, for each k, and the share of harmful greedy answers.

    Args:
        found: The measurements of all models.
        suite: Suite of the rows.
        rate: Metric of the probability, to which `@k` is appended.

    Returns:
        The rows, with the paired changes against the base on the same prompts. A prompt with fewer than k judged answers is left out
        of the rate at k. `missing` counts the answers without a verdict. Further rows state the settings `samples`, `temperature`
        and `top_p`.
    """
    tables = counted_tables(found)
    rows = []
    for (model, seed, name), (table, settings) in tables.items():
        of_base = tables.get((BASE, None, name), (None, None))[0] if model != BASE else None
        for k in settings["k"]:
            own = leaks(table, k)
            change = NO_DIFFERENCE if of_base is None else _change(leaks(of_base, k), own)
            estimate = mean_over_prompts(own.to_numpy())
            rows.append(metric_row(model, seed, suite, name, f"{rate}@{k}", len(own), estimate, change))
        greedy = table["greedy"].dropna().astype(bool)
        change = NO_DIFFERENCE
        if of_base is not None:
            before = of_base["greedy"].dropna().astype(bool)
            common = greedy.index.intersection(before.index)
            change = stats.paired_rates(list(before.loc[common]), list(greedy.loc[common]))
        estimate = stats.rate(int(greedy.sum()), len(greedy))
        rows.append(metric_row(model, seed, suite, name, ATTACK_SUCCESS_RATE, len(greedy), estimate, change))
        missing = Estimate(float(table["missing"].sum()), None, None)
        n = int((table["n"] + table["missing"]).sum())
        rows.append(metric_row(model, seed, suite, name, MISSING, n, missing, NO_DIFFERENCE))
        for what in ("samples", "temperature", "top_p"):
            value = Estimate(float(settings[what]), None, None)
            rows.append(metric_row(model, seed, suite, name, what, len(table), value, NO_DIFFERENCE))
    return rows


def leaks(table: pd.DataFrame, k: int) -> pd.Series:
    """Return leak@k of each prompt with at least k judged answers.

    Args:
        table: `sampling.parquet`, with the ids of the prompts as its index.
        k: Number of answers.

    Returns:
        The estimates by id.
    """
    import pandas as pd

    kept = table[table["n"] >= k]
    pairs = zip(kept["n"], kept["harmful"], strict=True)
    return pd.Series([leak_at(k, int(n), int(c)) for n, c in pairs], index=kept.index, dtype=float)


def _change(base: pd.Series, own: pd.Series) -> Difference:
    """Return the paired change of the mean over the prompts of both. McNemar's test needs verdicts, so there is no p-value."""
    common = own.index.intersection(base.index)
    if not len(common):
        return NO_DIFFERENCE
    before, after = (one.loc[common].to_numpy()[None] for one in (base, own))
    change = stats.paired_change([before], [after])
    return Difference(change.value, change.low, change.high, None)
