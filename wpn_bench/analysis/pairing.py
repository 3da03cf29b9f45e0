"""Compute paired differences between two runs, for the same method on the same items.

Runs are paired if they have the same base model (by the digest of its weights), on the sets that both measured in the
same way (see `comparability`). Sets that differ are listed and not paired. The base model is the control: if equal
answers of base were judged differently in the two runs, the rules of judging have changed, and the rates concerned are
not paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wpn_bench.analysis import benchmark_rows, metric_rows, stats
from wpn_bench.analysis.comparability import Differences, differences, protocol_of
from wpn_bench.prompts import WORST_CASE
from wpn_bench.runs.files import BASE, DOCUMENTS, SAMPLES, Row
from wpn_bench.runs.finished import LabelledRun
from wpn_bench.runs.metrics import (
    ACCURACY,
    ANSWERED_RATE,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    COHERENT_HARMLESS_RATE,
    HARMLESS_RATE,
    PROMPT_METRICS,
    REFUSAL_RATE,
    metric_of,
)
from wpn_bench.runs.settings import part

if TYPE_CHECKING:
    import pandas as pd


PAIRED_METRICS = (HARMLESS_RATE, COHERENT_HARMLESS_RATE, ANSWERED_RATE, REFUSAL_RATE)
# Metrics that depend on the verdicts behind another one.
_DEPENDS = {
    HARMLESS_RATE: (COHERENT_HARMLESS_RATE, ANSWERED_RATE),
    COHERENT_HARMLESS_RATE: (ANSWERED_RATE,),
    REFUSAL_RATE: (ANSWERED_RATE,),
}
_SAMPLES = ("model", "seed", "suite", "set", "item_id", "response", "score", "harmless", "coherent", "refusal")
_DOCUMENTS = ("model", "seed", "task", "doc_id", "doc_hash", "correct", "score", *benchmark_rows.OWN_UNIT)


@dataclass
class Paired:
    """The paired differences of two runs, `other` minus `first`.

    Attributes:
        first: The run to compare with.
        other: The other run.
        rows: Rows as in results.json. `value` is that of `other`, and `delta*` and `p_value` compare with the same
            method in `first`.
        seeds: For each model, a text that tells which seeds were paired.
        refused: (what was not paired, reason).
        notes: Further facts that the reader must know.
    """

    first: LabelledRun
    other: LabelledRun
    rows: list[Row] = field(default_factory=list)
    seeds: dict[str, str] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def pair(first: LabelledRun, other: LabelledRun) -> Paired:
    """Pair two runs where this is valid.

    Args:
        first: The run to compare with.
        other: The other run.

    Returns:
        The paired differences, and what was not paired, with reasons.
    """
    found = Paired(first, other)
    for run in (first, other):
        if not run.manifest:
            found.refused.append(
                ("everything", f"{run.label} has no manifest, so its prompts and settings are unknown")
            )
            return found
    ours, theirs = (part(run.manifest, "model").get("digest") for run in (first, other))
    if not ours or ours != theirs:
        found.refused.append(("everything", "the runs have different base models"))
        return found
    asked = [protocol_of(run, [BASE]) for run in (first, other)]
    apart = differences(asked[0], asked[1], (first.label, other.label))
    _pair_prompts(found, apart)
    _pair_documents(found, apart)
    if equal := [model for model in found.seeds if _same_weights(first, other, model)]:
        found.notes.append(f"the same weights in both runs, seed by seed: {', '.join(equal)}")
    return found


def _same_weights(first: LabelledRun, other: LabelledRun, model: str) -> bool:
    made = [part(part(run.manifest, "models"), model) for run in (first, other)]
    digests = [{seed: part(of_run, seed).get("digest") for seed in of_run} for of_run in made]
    return bool(digests[0]) and digests[0] == digests[1]


def matched(first: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Match the seeds of two runs.

    Each shared seed is matched with itself. If no seed is shared and each run has only one, these two are matched.

    Args:
        first: Seeds of one run.
        other: Seeds of the other run.

    Returns:
        The pairs of seeds; empty if there are none.
    """
    common = sorted(set(first) & set(other))
    if common:
        return [(seed, seed) for seed in common]
    return [(first[0], other[0])] if len(first) == len(other) == 1 else []


def _pair_prompts(found: Paired, apart: Differences) -> None:
    ours, theirs = (_read(run, SAMPLES, _SAMPLES) for run in (found.first, found.other))
    if ours is None or theirs is None:
        found.refused.append(("prompt sets", "one of the runs has no samples"))
        return
    if apart.settings:
        found.refused.append(("prompt sets", "; ".join(apart.settings)))
        return
    sets = _shared(found, apart, _names(ours, ("suite", "set")), _names(theirs, ("suite", "set")))
    views = (found.first.view, found.other.view)
    not_to_refuse = [
        (suite, name) for suite, name in sets if all(v.rate_of(suite, name) == ANSWERED_RATE for v in views)
    ]
    metrics = [m for m in PAIRED_METRICS if m != ANSWERED_RATE or not_to_refuse]
    found.refused += [(metric, reason) for metric, reason in apart.metrics.items() if metric in metrics]
    judged = [m for m in metrics if m not in (ANSWERED_RATE, *apart.metrics)]
    barred = _rules_that_changed(found, ours, theirs, sets, judged)
    barred |= {(name, metric) for _, name in sets for metric in apart.metrics}
    ours, theirs = (frame[frame["set"].isin([name for _, name in sets])] for frame in (ours, theirs))
    threshold = float(found.first.view.run.get("threshold") or 0.5)

    where = [(suite, name, metric) for suite, name in sets for metric in metrics]

    def rows(both: pd.DataFrame) -> Iterable[Row]:
        return [*metric_rows.prompt_rows(both, threshold, not_to_refuse), *metric_rows.worst_case_rows(both, threshold)]

    bad = {metric for _, metric in barred}
    for row in _rows(found, ours, theirs, rows, where):
        worst = row.set == WORST_CASE and row.metric in bad
        if row.metric in metrics and not worst and (row.set, row.metric) not in barred:
            found.rows.append(row)


def _rules_that_changed(
    found: Paired,
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    sets: Sequence[tuple[str, ...]],
    metrics: Sequence[str],
) -> set[tuple[str, str]]:
    """Return each (set, metric of `metrics`) for which equal answers of base were judged differently.

    A note is added if base's answers differ.
    """
    keys = ["suite", "set", "item_id"]
    columns = {metric: PROMPT_METRICS[metric].columns[-1] for metric in metrics}
    both = ours[ours["model"] == BASE].merge(theirs[theirs["model"] == BASE], on=keys, suffixes=("", ":other"))
    both = both[both["set"].isin([name for _, name in sets])]
    equal = both["response"].fillna("") == both["response:other"].fillna("")
    if not equal.all():
        found.notes.append(
            f"base itself gave another answer to {int((~equal).sum()):,} of {len(both):,} prompts (other library versions "
            "or hardware?): differences about as small are no effect of the method"
        )
    barred: set[tuple[str, str]] = set()
    for metric, column in columns.items():
        changed = equal & (both[column].fillna(False) != both[f"{column}:other"].fillna(False))
        names = list(dict.fromkeys(both[changed]["set"]))
        if names:
            n = int(changed.sum())
            why = f"the rules of judging have changed: {n:,} equal answers of base have another verdict"
            found.refused.append((f"{metric} of {', '.join(names)}", why))
        barred |= {(name, metric) for name in names}
        barred |= {(name, other) for name in names for other in _DEPENDS.get(metric, ())}
    return barred


def _pair_documents(found: Paired, apart: Differences) -> None:
    import pandas as pd

    ours, theirs = (_read(run, DOCUMENTS, _DOCUMENTS) for run in (found.first, found.other))
    if ours is None or theirs is None:
        found.refused.append(("benchmarks", "one of the runs has no benchmark documents"))
        return
    tasks = [[(BENCHMARK, task) for (task,) in _names(frame, ("task",))] for frame in (ours, theirs)]
    same = [task for _, task in _shared(found, apart, *tasks)]
    whole = set(same) == set(ours["task"]) == set(theirs["task"])
    if same and not whole:
        found.refused.append((BENCHMARK_AVERAGE, "it would be a mean over fewer tasks than in the runs"))
    ours, theirs = (frame[frame["task"].isin(same)] for frame in (ours, theirs))
    metrics = benchmark_rows.task_metrics(pd.concat([ours, theirs]))
    where = [(BENCHMARK, task, metrics.get(task, ACCURACY)) for task in (*same, BENCHMARK_AVERAGE)]
    rows = _rows(found, ours, theirs, benchmark_rows.benchmark_rows, where)
    found.rows += [row for row in rows if whole or row.set != BENCHMARK_AVERAGE]


def _read(run: LabelledRun, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    """Read those of the columns that the run's table has. Returns None if there is no such table."""
    if not (run.folder / name).is_file():
        return None
    needed = ("seed", *columns[:1])
    frame = run.samples_with(needed) if name == SAMPLES else run.documents_with(needed)
    return frame[[c for c in columns if c in frame]].astype({"seed": "Int64"})


def _names(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, ...]]:
    return list(frame[list(columns)].drop_duplicates().itertuples(index=False, name=None))


def _shared(
    found: Paired, apart: Differences, ours: Sequence[tuple[str, ...]], theirs: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Return the sets that both runs measured in the same way. Others are refused, and listed together by reason."""
    known = dict.fromkeys((*ours, *theirs))
    reasons = {name: apart.sets[suite, name] for suite, name in known if (suite, name) in apart.sets}
    for reason in dict.fromkeys(reasons.values()):
        found.refused.append((", ".join(name for name, why in reasons.items() if why == reason), reason))
    return [at for at in known if at not in apart.sets and at in ours and at in theirs]


def _rows(
    found: Paired,
    ours: pd.DataFrame,
    theirs: pd.DataFrame,
    compared: Callable[[pd.DataFrame], Iterable[Row]],
    where: Sequence[tuple[str, str, str]],
) -> list[Row]:
    """Return the rows of every method that both runs have, for each seed and over seeds.

    `compared` compares models with the base. Here, the method of `ours` takes the place of the base. `where` lists the
    (suite, set, metric) to look up if seeds cannot be matched.
    """
    import pandas as pd

    rows: list[Row] = []
    for model in [name for name in dict.fromkeys(ours["model"]) if name != BASE and name in set(theirs["model"])]:
        mine, its = (frame[frame["model"] == model] for frame in (ours, theirs))
        seeds = [sorted({int(seed) for seed in frame["seed"].dropna()}) for frame in (mine, its)]
        pairs = matched(seeds[0], seeds[1])
        found.seeds[model] = _seeds_text(seeds, pairs)
        for one, two in pairs:
            before = mine[mine["seed"] == one].assign(model=BASE, seed=pd.NA).astype({"seed": "Int64"})
            both = pd.concat([before, its[its["seed"] == two]])
            rows += [row for row in compared(both) if row.model != BASE]
        if not pairs:
            rows += _unpaired_rows(found, model, where)
    return metric_rows.sum_up(rows)


def _unpaired_rows(found: Paired, model: str, where: Sequence[tuple[str, str, str]]) -> list[Row]:
    """Return the rows of a method whose seeds differ in the two runs, as unpaired means over seeds."""
    rows = []
    for suite, name, metric in where:
        cells = [run.view.per_seed(model, suite, name, metric).values() for run in (found.first, found.other)]
        values = [[cell.value for cell in side if cell.value is not None] for side in cells]
        if not all(values):
            continue
        change = stats.seeds_apart(values[0], values[1])
        limits = (0.0, 1.0) if metric_of(metric).is_share else ()
        mean = stats.over_seeds(values[1], *limits)
        n = sum(cell.n or 0 for cell in cells[1])
        deltas = (change.value, change.low, change.high, change.p_value)
        rows.append(Row(model, None, suite, name, metric, mean.value, n, mean.low, mean.high, *deltas))
    return rows


def _seeds_text(seeds: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]]) -> str:
    written = [", ".join(map(str, side)) for side in seeds]
    if not pairs:
        return f"seeds {written[0]} against {written[1]}, unpaired"
    if pairs[0][0] != pairs[0][1]:
        return f"seed {pairs[0][1]} against seed {pairs[0][0]}"
    used = ", ".join(str(seed) for seed, _ in pairs)
    only = " (the others are in one run only)" if len(pairs) < max(map(len, seeds)) else ""
    return (f"seeds {used}, each with itself" if len(pairs) > 1 else f"seed {used}") + only
