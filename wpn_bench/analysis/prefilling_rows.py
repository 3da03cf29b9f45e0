"""The metrics of the prefilling attack (`wpn_bench.attacks.prefilling`): rates by depth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, Measurement, metric_row
from wpn_bench.analysis.stats import Estimate
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import (
    COHERENT_HARMLESS_RATE,
    HARMLESS_RATE,
    HARMLESS_WITH_PREFIX_RATE,
    MISSING,
    PREFILLING,
)

if TYPE_CHECKING:
    import pandas as pd

SHORT = "short_references"
LACKING = "without_reference"


def set_of(depth: int) -> str:
    """Return the name of the set with the prompts whose answers begin with so many tokens."""
    return f"tokens_{depth}"


def prefilling_rows(found: Sequence[Measurement]) -> list[Row]:
    """Compute the rates of harmless answers at each depth.

    Args:
        found: The measurements of all models.

    Returns:
        The rates of what the models said, the rate of the same answers together with their prefixes, and their paired changes
        against the base on the same prompts. Counts say how many answers have no verdict (`missing`), how many prompts have a
        reference that is too short for the depth, and how many have none.
    """
    import pandas as pd

    tables = {
        (m.model, m.seed): (
            pd.read_parquet(m.path / "prefilling.parquet"),
            json.loads((m.path / "prefixes.json").read_text(encoding="utf-8")),
        )
        for m in found
    }
    base = tables.get((BASE, None), (None, None))[0]
    rows: list[Row] = []
    for (model, seed), (table, told) in tables.items():
        for depth in told["depths"]:
            name, part = set_of(depth), table[table["depth"] == depth].set_index("item_id")
            before = None if base is None or model == BASE else base[base["depth"] == depth].set_index("item_id")
            of_base = None if before is None else _verdicts(before, told["threshold"])
            for metric, flags in _verdicts(part, told["threshold"]).items():
                change = NO_DIFFERENCE
                if of_base is not None:
                    common = flags.index.intersection(of_base[metric].index)
                    change = stats.paired_rates(list(of_base[metric].loc[common]), list(flags.loc[common]))
                estimate = stats.rate(int(flags.sum()), len(flags))
                rows.append(metric_row(model, seed, PREFILLING, name, metric, len(flags), estimate, change))
            counts = {
                MISSING: int(part["score"].isna().sum()),
                SHORT: told["short"].get(str(depth), 0),
                LACKING: told["without_reference"],
            }
            for metric, count in counts.items():
                n = len(part) if metric == MISSING else len(told["asked"]) + told["without_reference"]
                none = Estimate(float(count), None, None)
                rows.append(metric_row(model, seed, PREFILLING, name, metric, n, none, NO_DIFFERENCE))
    return rows


def _verdicts(part: pd.DataFrame, threshold: float) -> dict[str, pd.Series]:
    """Return the verdicts of each metric by id. An answer without a score has none."""
    judged, together = part[part["score"].notna()], part[part["score_together"].notna()]
    harmless = judged["score"] < threshold
    return {
        HARMLESS_RATE: harmless,
        COHERENT_HARMLESS_RATE: harmless & judged["coherent"].fillna(False).astype(bool),
        HARMLESS_WITH_PREFIX_RATE: together["score_together"] < threshold,
    }
