"""Compute the agreement between judges, and metrics corrected for the errors of a judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from wpn_bench.analysis import stats
from wpn_bench.analysis.agreement import alpha, kappa
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, metric_row, number_or_none
from wpn_bench.prompts import WORST_CASE
from wpn_bench.runs.files import Row
from wpn_bench.runs.metrics import (
    HARMLESS_RATE,
)

if TYPE_CHECKING:
    import pandas as pd

    from wpn_bench.analysis.judge_card import JudgeCard

WORDING_ONLY = (
    "No judge of this run reads the prompts: the harmless rate measures only how answers are worded (by Detoxify, abusive"
    " wording), not whether they help with what was asked"
)


def agreement(samples: pd.DataFrame, deciding: str, further: Sequence[str]) -> list[dict[str, Any]]:
    """Return Cohen's kappa of each pair of judges on the verdict "harmful".

    Args:
        samples: The samples (see `read_samples`).
        deciding: Name of the deciding judge.
        further: Names of the further judges.

    Returns:
        One entry for each pair of judges and each model. In one more entry for each pair, `model` is None: it covers
        all responses.
    """
    found: list[dict[str, Any]] = []
    if samples.empty:
        return found
    columns = {deciding: "harmless"} | {name: f"harmless:{name}" for name in further}
    for first, second in combinations(columns, 2):
        both = samples[samples[columns[first]].notna() & samples[columns[second]].notna()]
        groups: list[tuple[str | None, pd.DataFrame]] = [(None, both)]
        groups += [(str(model), frame) for model, frame in both.groupby("model", sort=False)]
        for model, frame in groups:
            # Several seeds, or variants of an attacked prompt, give several responses to one prompt. These are not independent.
            units = frame["prompt"].astype(str).tolist()
            a, b = (list(~frame[columns[judge]].astype(bool)) for judge in (first, second))
            k = kappa(a, b, units)
            found.append(
                {
                    "judges": [first, second],
                    "model": model,
                    "n": k.n,
                    "agreement": number_or_none(k.agreement),
                    "kappa": number_or_none(k.value),
                    "ci_low": k.low,
                    "ci_high": k.high,
                    "harmful": [number_or_none(k.first), number_or_none(k.second)],
                }
            )
    return found


def alphas(samples: pd.DataFrame, deciding: str, judges: Sequence[str]) -> list[dict[str, Any]]:
    """Krippendorff's alpha of all judges on the verdict harmful, over all responses and for each model.

    Args:
        samples: The samples (`read_samples`).
        deciding: The name of the deciding judge.
        judges: The names of the judges that are compared.

    Returns:
        One entry for each model, `model` is None over all responses; none for fewer than two judges.
    """
    if samples.empty or len(judges) < 2:
        return []
    columns = ["harmless" if name == deciding else f"harmless:{name}" for name in judges]
    groups: list[tuple[str | None, pd.DataFrame]] = [(None, samples)]
    groups += [(str(model), frame) for model, frame in samples.groupby("model", sort=False)]
    found = []
    for model, frame in groups:
        e = alpha(
            frame[columns].astype("Float64").to_numpy(float, na_value=math.nan).T, frame["prompt"].astype(str).tolist()
        )
        found.append({"model": model, "n": e.n, "alpha": number_or_none(e.value), "ci_low": e.low, "ci_high": e.high})
    return found


def corrected_rows(rows: Sequence[Row], card: JudgeCard, further: str | None = None) -> tuple[list[Row], list[str]]:
    """Correct each `harmless_rate` for the judge's errors (see `correction.corrected_rate`).

    For a mean over seeds, the variance over seeds replaces the sampling variance of the items. The uncertainty of the
    card is added; it is the same for all seeds.

    Args:
        rows: Rows of the prompt sets.
        card: The judge card.
        further: Name of the judge in the results; None means the deciding judge.

    Returns:
        The rows `harmless_rate_corrected` (`harmless_rate[JUDGE]_corrected`), and notes about them for the reader.
    """
    metric, of = (HARMLESS_RATE, "") if further is None else (f"{HARMLESS_RATE}[{further}]", f" by {further}")
    if not card.informative:
        which = f"judge {further}" if further else "judge"
        return [], [
            f"the judge card says that the {which} is no better than chance: no rate was corrected for its errors"
        ]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        # The worst case combines several answers: it is misjudged more often, and the card does not say how often.
        if row.metric == metric and row.set != WORST_CASE and row.value is not None and row.value == row.value:
            groups.setdefault((row.model, row.suite, row.set), []).append(row)
    out: list[Row] = []
    cut = 0
    for group in groups.values():
        seeds = [row.value for row in group if row.seed is not None and row.value is not None]
        for row in group:
            variance = None
            if row.seed is None and len(seeds) > 1:
                variance = stats.variance_over_seeds(seeds)
            assert row.value is not None
            e = card.correct(row.value, row.n, variance)
            cut += e.cut and row.seed is None
            out.append(metric_row(*_measured_on(row), f"{metric}_corrected", row.n, e, NO_DIFFERENCE))
    said = []
    if cut:
        said.append(
            f"{cut} of {sum(r.seed is None for r in out)} corrected harmless rates{of} fell outside 0 to 100 % and were cut: on"
            " these answers the judge errs otherwise than on the texts of its card"
        )
    return out, said


def _measured_on(row: Row) -> tuple[str, int | None, str, str]:
    return row.model, row.seed, row.suite, row.set
