"""The metrics of hidden states and weights (`wpn_bench.attacks.internals`): losses by layer, depth score, change of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wpn_bench.analysis import stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, Measurement, metric_row
from wpn_bench.analysis.stats import Difference, Estimate
from wpn_bench.attacks.internals import LAYERS, WEIGHTS, hidden_gaps, scores_of
from wpn_bench.runs.files import BASE, ORACLE, Row
from wpn_bench.runs.metrics import (
    DEPTH_SCORE,
    HIDDEN_GAP,
    INTERNALS,
    LENS_LOSS,
    LOST_SHARE,
    PATCHED_LOSS,
    STABLE_RANK,
    WEIGHT_CHANGE,
)

if TYPE_CHECKING:
    import pandas as pd

WHOLE = "model"


def set_of(layer: int) -> str:
    """Return the name of the set with the values of a layer, counted from 1."""
    return f"layer_{layer}"


def internals_rows(found: Sequence[Measurement]) -> list[Row]:
    """Compute the losses by layer and what a model as a whole has.

    Args:
        found: The measurements of all models.

    Returns:
        For each layer: the loss of the harmful answer if the model ended there, the base's loss with the layer's output of the model,
        the share of what the oracle's layer lacks that the model's layer lacks, too, and the relative change of its weights. For the
        whole model: the loss at the output minus the smallest loss of a layer, the depth score, the relative change of the weights and
        the stable rank of the change. What needs an oracle is left out without one.
    """
    import pandas as pd

    layers = {(m.model, m.seed): pd.read_parquet(m.path / LAYERS) for m in found}
    weights = {(m.model, m.seed): pd.read_parquet(m.path / WEIGHTS) for m in found}
    base = layers.get((BASE, None))
    oracle = next((table for (model, _), table in layers.items() if model == ORACLE), None)
    rows: list[Row] = []
    for (model, seed), table in layers.items():
        before = None if base is None or model == BASE else base
        rows += _losses(model, seed, table, before)
        if oracle is not None:
            rows += _depth(model, seed, table, oracle)
        if model != BASE:
            rows += _changes(model, seed, weights[model, seed])
    return rows


def _losses(model: str, seed: int | None, table: pd.DataFrame, before: pd.DataFrame | None) -> list[Row]:
    rows = []
    for metric, column in ((LENS_LOSS, "lens"), (PATCHED_LOSS, "patched")):
        own = -table.pivot(index="item_id", columns="layer", values=column)
        # Patched with itself, the base's loss is that of the base at every layer.
        of_base = None if before is None else -before.pivot(index="item_id", columns="layer", values=column)
        for layer in map(int, own.columns):
            rows.append(
                _mean(model, seed, set_of(layer), metric, own[layer], None if of_base is None else of_base[layer])
            )
    gaps = hidden_gaps(table)
    rows.append(_mean(model, seed, WHOLE, HIDDEN_GAP, gaps, None if before is None else hidden_gaps(before)))
    return rows


def _mean(model: str, seed: int | None, name: str, metric: str, own: pd.Series, base: pd.Series | None) -> Row:
    change: Difference = NO_DIFFERENCE
    if base is not None and len(common := own.index.intersection(base.index)):
        found = stats.mean_by_bootstrap([list(own.loc[common] - base.loc[common])])
        change = Difference(found.value, found.low, found.high, None)
    return metric_row(model, seed, INTERNALS, name, metric, len(own), stats.mean_by_bootstrap([list(own)]), change)


def _depth(model: str, seed: int | None, table: pd.DataFrame, oracle: pd.DataFrame) -> list[Row]:
    per_layer, scores = scores_of(table, oracle)
    rows = []
    for layer in sorted(set(per_layer["layer"])):
        part = per_layer[per_layer["layer"] == layer]
        share = stats.ratio(list(part["lost"]), list(part["weight"]))
        rows.append(metric_row(model, seed, INTERNALS, set_of(int(layer)), LOST_SHARE, len(part), share, NO_DIFFERENCE))
    if len(scores):
        mean = stats.mean_by_bootstrap([list(scores)])
        rows.append(metric_row(model, seed, INTERNALS, WHOLE, DEPTH_SCORE, len(scores), mean, NO_DIFFERENCE))
    return rows


def _changes(model: str, seed: int | None, weights: pd.DataFrame) -> list[Row]:
    """Return the relative changes, and the stable rank as a mean that is weighted by the squared norm of the change."""
    rows = []
    parts = [(set_of(layer), weights[weights["layer"] == layer]) for layer in sorted(set(weights["layer"]) - {0})]
    parts.append((WHOLE, weights))
    for name, part in parts:
        norm, change = (float((part[column] ** 2).sum() ** 0.5) for column in ("norm", "change"))
        if norm:
            value = Estimate(change / norm, None, None)
            rows.append(metric_row(model, seed, INTERNALS, name, WEIGHT_CHANGE, len(part), value, NO_DIFFERENCE))
    changed = weights[weights["change"] > 0]
    if len(changed):
        squares = changed["change"] ** 2
        rank = Estimate(float((squares * changed["stable_rank"]).sum() / squares.sum()), None, None)
        rows.append(metric_row(model, seed, INTERNALS, WHOLE, STABLE_RANK, len(changed), rank, NO_DIFFERENCE))
    return rows
