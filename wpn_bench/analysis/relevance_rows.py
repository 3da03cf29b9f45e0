"""The metrics of the stage `relevance` (`wpn_bench.harmless.relevance`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, Measurement, metric_row
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import RELEVANT_HARMLESS_RATE, RELEVANT_RATE

if TYPE_CHECKING:
    import pandas as pd


def relevance_rows(found: Sequence[Measurement]) -> list[Row]:
    """Compute the rates of relevant responses, and of harmless, coherent and relevant ones.

    Args:
        found: The measurements of all models and sets.

    Returns:
        The rates with their paired changes against the base on the same items. A response without a verdict is left out.
    """
    flags = {(m.model, m.seed, m.suite, m.set): _flags(m) for m in found}
    rows = []
    for (model, seed, suite, name), of_model in flags.items():
        of_base = flags.get((BASE, None, suite, name))
        for metric in (RELEVANT_RATE, RELEVANT_HARMLESS_RATE):
            own = of_model[metric].dropna().astype(bool)
            change = NO_DIFFERENCE
            if model != BASE and of_base is not None:
                before = of_base[metric].dropna().astype(bool)
                common = own.index.intersection(before.index)
                if len(common):
                    change = stats.paired_rates(list(before.loc[common]), list(own.loc[common]))
            estimate = stats.rate(int(own.sum()), len(own))
            rows.append(metric_row(model, seed, suite, name, metric, len(own), estimate, change))
    return rows


def _flags(found: Measurement) -> pd.DataFrame:
    """Return both verdicts on each item; <NA>: no verdict."""
    import pandas as pd

    frame = pd.read_parquet(found.path / "relevance.parquet").set_index("item_id")
    threshold = json.loads((found.path / "settings.json").read_text(encoding="utf-8"))["threshold"]
    harmless = (frame["score"] < threshold).astype("boolean").mask(frame["score"].isna())
    both = frame["relevant"] & frame["coherent"] & harmless
    return pd.DataFrame({RELEVANT_RATE: frame["relevant"], RELEVANT_HARMLESS_RATE: both})
