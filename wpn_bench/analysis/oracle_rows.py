"""The distance of every model to the oracle, a model that never saw the harm: differences of rates, and equal answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, metric_row
from wpn_bench.analysis.stats import Difference, Estimate
from wpn_bench.runs.files import BASE, ORACLE, Row
from wpn_bench.runs.metrics import (
    COHERENT_HARMLESS_MINUS_ORACLE,
    HARMLESS_MINUS_ORACLE,
    SAME_TEXT_RATE,
    SAME_VERDICT_RATE,
    oracle_suite,
)

if TYPE_CHECKING:
    import pandas as pd


def oracle_rows(samples: pd.DataFrame) -> list[Row]:
    """Compare the answers of every model with those of the oracle to the same prompts.

    Args:
        samples: All judged samples (see `metric_rows.read_samples`).

    Returns:
        For each model, seed and prompt set: the differences of the harmless and the coherent-harmless rate from the oracle's, and the
        shares of prompts with the same verdict (harmless or not) and with the same text. Only prompts whose answers both have a
        verdict count, and for the text those with both answers. The shares have paired changes against the base. There are no rows
        without an oracle.
    """
    if samples.empty or ORACLE not in set(samples["model"]):
        return []
    rows: list[Row] = []
    for (suite, name), asked in samples.groupby(["suite", "set"], sort=False):
        theirs = asked[asked["model"] == ORACLE].set_index("item_id")
        others = asked[asked["model"] != ORACLE].groupby(["model", "seed"], sort=False, dropna=False)
        agreed: dict[tuple[str, int | None], dict[str, pd.DataFrame]] = {}
        for (model, _), own in others:
            seeds = own["seed"].dropna()  # the base has none
            key = (str(model), int(seeds.iloc[0]) if len(seeds) else None)
            agreed[key] = _agreement(own.set_index("item_id"), theirs)
        of_base = agreed.get((BASE, None), {})
        for (model, seed), found in agreed.items():
            rows += _rows(model, seed, oracle_suite(str(suite)), str(name), found, {} if model == BASE else of_base)
    return rows


def _agreement(own: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what each metric needs, by id of the prompt: the flags `old` of the oracle and `new` of the model, and `same`."""
    import pandas as pd

    both = own.join(theirs, how="inner", rsuffix="_of_oracle")
    judged = both[both["harmless"].notna() & both["harmless_of_oracle"].notna()]
    flags = {}
    for end, frame in (("", "new"), ("_of_oracle", "old")):
        harmless = judged[f"harmless{end}"].astype(bool)
        flags[frame] = (harmless, harmless & judged[f"coherent{end}"].fillna(False).astype(bool))
    answered = both[both["response"].notna() & both["response_of_oracle"].notna()]
    return {
        HARMLESS_MINUS_ORACLE: pd.DataFrame({"old": flags["old"][0], "new": flags["new"][0]}),
        COHERENT_HARMLESS_MINUS_ORACLE: pd.DataFrame({"old": flags["old"][1], "new": flags["new"][1]}),
        SAME_VERDICT_RATE: pd.DataFrame({"same": flags["old"][0] == flags["new"][0]}),
        SAME_TEXT_RATE: pd.DataFrame({"same": answered["response"] == answered["response_of_oracle"]}),
    }


def _rows(
    model: str,
    seed: int | None,
    suite: str,
    name: str,
    found: Mapping[str, pd.DataFrame],
    of_base: Mapping[str, pd.DataFrame],
) -> list[Row]:
    rows = []
    for metric, table in found.items():
        if not len(table):
            continue
        change: Difference = NO_DIFFERENCE
        if "same" not in table:
            value: Estimate = stats.paired_rates(list(table["old"]), list(table["new"]))
        else:
            value = stats.rate(int(table["same"].sum()), len(table))
            if metric in of_base:
                pair = of_base[metric].join(table, how="inner", lsuffix="_before")
                change = stats.paired_rates(list(pair["same_before"]), list(pair["same"])) if len(pair) else change
        rows.append(metric_row(model, seed, suite, name, metric, len(table), value, change))
    return rows
