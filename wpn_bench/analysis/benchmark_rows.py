"""Compute the rows of results.json for benchmarks, from the answers to their documents.

An accuracy is a mean of scores from 0 to 1 where higher is better. The macro average `nine` is the mean over these tasks. A
task with another score, such as bits per byte, has rows in its own unit whose metric names its direction
(`metrics.own_metric`). It does not enter the average.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wpn_bench.analysis import own_units, stats
from wpn_bench.analysis.metric_rows import NO_DIFFERENCE, Measurement, metric_row, together
from wpn_bench.analysis.own_units import Scored
from wpn_bench.analysis.stats import Difference, Estimate
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.metrics import ACCURACY, BENCHMARK, BENCHMARK_AVERAGE, metric_of, own_metric

if TYPE_CHECKING:
    import pandas as pd

OWN_UNIT = ("metric", "higher_is_better", "scale", "weight")  # columns of documents whose score has its own unit


def read_documents(found: Iterable[Measurement]) -> pd.DataFrame:
    """Read the answers to all benchmark documents: model, seed, task, doc_id, correct, and lm-eval's columns."""
    return together(((m, {"task": m.set}) for m in found), "documents")


def scores_of(documents: pd.DataFrame) -> pd.Series:
    """Return the score of each document: from 0 to 1, or in the unit of the task's metric.

    It is the score of the task's metric, or whether the answer is correct.
    """
    correct = documents["correct"].astype(float)
    if "score" not in documents:
        return correct
    scores = documents["score"].astype(float)
    own = documents["metric"].notna() if "metric" in documents else False
    return scores.where(scores.notna() | own, correct)


def task_metrics(documents: pd.DataFrame) -> dict[str, str]:
    """Return the metric of each task: `accuracy`, or the name of a score with its own unit.

    A score with its own unit has it for all models, even if the values of some models lie between 0 and 1.
    """
    found = dict.fromkeys(map(str, documents["task"]), ACCURACY) if len(documents) else {}
    if "metric" in documents:
        named = documents[documents["metric"].notna()].drop_duplicates("task")
        for task, metric, higher in zip(named["task"], named["metric"], named["higher_is_better"], strict=True):
            found[str(task)] = own_metric(str(metric), higher_is_better=bool(higher))
    return found


def scored(frame: pd.DataFrame) -> Scored:
    """Return the scores and weights of one model's documents of a task with its own unit."""
    import numpy as np

    scale = frame["scale"].dropna()
    parts = (scores_of(frame), frame["weight"].astype(float).fillna(1.0))
    scores, weights = (np.asarray(part, dtype=float)[None] for part in parts)
    return Scored(scores, weights, str(scale.iloc[0]) if len(scale) else "mean")


@dataclass(frozen=True)
class TaskAverage:
    """A group of tasks in results.

    If `weighted`, tasks count by their number of documents. If not, they count equally.
    """

    name: str
    tasks: tuple[str, ...]
    weighted: bool


def benchmark_rows(documents: pd.DataFrame, groups: Sequence[TaskAverage] = ()) -> list[Row]:
    """Return the score of each task, and the macro average `nine` of the accuracies, with paired changes against base.

    Args:
        documents: The answers to all documents.
        groups: Groups of tasks. Each gets a row with the average that lm-eval computes.

    Returns:
        The rows of all models.
    """
    rows: list[Row] = []
    if documents.empty:
        return rows
    metrics = task_metrics(documents)
    tasks = [task for task, metric in metrics.items() if metric == ACCURACY]
    table: dict[tuple[str, int | None], dict[str, pd.Series]] = {}
    own: dict[tuple[str, int | None], dict[str, pd.DataFrame]] = {}
    for (model, seed, task), frame in documents.groupby(["model", "seed", "task"], sort=False, dropna=False):
        key = (str(model), None if model == BASE else int(str(seed)))
        frame = frame.set_index("doc_id")
        by_task, others = table.setdefault(key, {}), own.setdefault(key, {})
        if str(task) in tasks:
            by_task[str(task)] = scores_of(frame)
        else:
            others[str(task)] = frame
    base, own_base = table.get((BASE, None), {}), own.get((BASE, None), {})
    for (model, seed), by_task in table.items():
        task_rows = []
        for task in tasks:
            if task not in by_task:
                continue
            right = by_task[task]
            estimate = _mean_score(right)
            change = _paired([base[task]], [right]) if model != BASE and task in base else NO_DIFFERENCE
            task_rows.append(metric_row(model, seed, BENCHMARK, task, ACCURACY, len(right), estimate, change))
        adjusted = stats.holm([r.p_value for r in task_rows])
        rows += [replace(r, p_value=p) for r, p in zip(task_rows, adjusted, strict=True)]
        # Macro averages over different tasks are not comparable.
        if len(tasks) > 1 and all(t in by_task for t in tasks):
            series = [by_task[t] for t in tasks]
            estimate = stats.mean_by_bootstrap([s.tolist() for s in series])
            change = NO_DIFFERENCE
            if model != BASE and all(t in base for t in tasks):
                change = _paired([base[t] for t in tasks], series)
            n = sum(len(s) for s in series)
            rows.append(metric_row(model, seed, BENCHMARK, BENCHMARK_AVERAGE, ACCURACY, n, estimate, change))
        frames = own[model, seed]
        for task in frames:
            reference = None if model == BASE else own_base
            rows += _own_rows(model, seed, TaskAverage(task, (task,), True), frames, reference, metrics)
        for group in groups:
            if all(t in by_task for t in group.tasks):
                reference_ = None if model == BASE or not all(t in base for t in group.tasks) else base
                rows.append(_group_row(model, seed, group, by_task, reference_))
            elif all(t in frames for t in group.tasks):
                rows += _own_rows(model, seed, group, frames, None if model == BASE else own_base, metrics)
    return rows


def _own_rows(
    model: str,
    seed: int | None,
    group: TaskAverage,
    frames: Mapping[str, pd.DataFrame],
    base: Mapping[str, pd.DataFrame] | None,
    metrics: Mapping[str, str],
) -> list[Row]:
    """Return the row of a task or group with its own unit; none for a group whose tasks have different metrics.

    lm-eval averages the scores of a group's tasks, by their number of documents if the group is weighted.
    """
    import numpy as np

    if len({metrics[task] for task in group.tasks}) > 1:
        return []
    ours = [frames[task] for task in group.tasks]
    sizes = np.array([len(frame) for frame in ours] if group.weighted else [1.0] * len(ours))
    shares = (sizes / sizes.sum()).tolist()
    estimate = own_units.estimate([scored(frame) for frame in ours], shares)
    change: Difference = NO_DIFFERENCE
    if base is not None and all(task in base for task in group.tasks):
        pairs = [_common(base[task], frame) for task, frame in zip(group.tasks, ours, strict=True)]
        change = own_units.change([scored(b) for b, _ in pairs], [scored(m) for _, m in pairs], shares)
    n = sum(map(len, ours))
    return [metric_row(model, seed, BENCHMARK, group.name, metrics[group.tasks[0]], n, estimate, change)]


def _common(base: pd.DataFrame, model: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the documents that both models answered, in the same order."""
    index = base.index.intersection(model.index)
    return base.loc[index], model.loc[index]


def _mean_score(scores: pd.Series) -> Estimate:
    """Return the mean score with its interval: Wilson's for a proportion, else a bootstrap over documents."""
    if scores.isin((0.0, 1.0)).all():
        return stats.rate(int(scores.sum()), len(scores))
    return stats.mean_by_bootstrap([scores.tolist()])


def _group_row(
    model: str,
    seed: int | None,
    group: TaskAverage,
    by_task: Mapping[str, pd.Series],
    base: Mapping[str, pd.Series] | None,
) -> Row:
    """Return the row of a group. A weighted mean is the mean over all documents; otherwise tasks count equally."""
    import pandas as pd

    def parts(of: Mapping[str, pd.Series]) -> list[pd.Series]:
        series = [of[t] for t in group.tasks]
        return [pd.concat(series, keys=group.tasks)] if group.weighted else series

    ours = parts(by_task)
    estimate = _mean_score(ours[0]) if len(ours) == 1 else stats.mean_by_bootstrap([s.tolist() for s in ours])
    change = NO_DIFFERENCE if base is None else _paired(parts(base), ours)
    return metric_row(model, seed, BENCHMARK, group.name, ACCURACY, sum(map(len, ours)), estimate, change)


def _paired(base: Sequence[pd.Series], model: Sequence[pd.Series]) -> Difference:
    pairs = [(b.loc[b.index.intersection(m.index)], m) for b, m in zip(base, model, strict=True)]
    return stats.paired_accuracies([b.tolist() for b, _ in pairs], [m.loc[b.index].tolist() for b, m in pairs])


def turned_rows(documents: pd.DataFrame) -> list[Row]:
    """Count for each task the documents that only base answers correctly (`lost`) or only the model (`gained`).

    For scores between 0 and 1, documents count whose score is lower or higher than that of base. `n` is the number of
    documents that both answered. A task whose score has its own unit has no such rows, because nearly every document
    changes a little.
    """
    rows: list[Row] = []
    if documents.empty:
        return rows
    accuracies = [task for task, metric in task_metrics(documents).items() if metric == ACCURACY]
    documents = documents.assign(score=scores_of(documents))
    documents = documents[documents["task"].isin(accuracies)]
    base = documents[documents["model"] == BASE][["task", "doc_id", "score"]]
    others = documents[documents["model"] != BASE].merge(base, on=["task", "doc_id"], suffixes=("", "_base"))
    for (model, seed, task), both in others.groupby(["model", "seed", "task"], sort=False):
        counts = {
            "lost": int((both["score"] < both["score_base"]).sum()),
            "gained": int((both["score"] > both["score_base"]).sum()),
        }
        key = (str(model), int(str(seed)), BENCHMARK, str(task))
        rows += [Row(*key, metric, count, len(both)) for metric, count in counts.items()]
    return rows


def ability_change(before: Iterable[Measurement], after: Iterable[Measurement]) -> float:
    """Return how much better a model is at the tasks to tune on, as the mean over tasks.

    Args:
        before: The measurements of base.
        after: The measurements of the model.

    Returns:
        The mean of the changes. That of an accuracy is the difference. That of a score with its own unit is the change
        relative to base's value, with the sign turned if lower is better. NaN if a value is no number, or if base's
        value is not positive.
    """
    import numpy as np
    import pandas as pd

    frames = [read_documents(found).assign(model=name) for name, found in ((BASE, before), ("after", after))]
    metrics = task_metrics(pd.concat(frames))
    levels: list[tuple[float, float]] = []  # of base and of the model, on a scale where higher is better
    for task, metric in sorted(metrics.items()):
        of_task = [frame[frame["task"] == task] for frame in frames]
        if metric == ACCURACY:
            levels.append((float(scores_of(of_task[0]).mean()), float(scores_of(of_task[1]).mean())))
            continue
        old, new = (scored(frame).value for frame in of_task)
        sign = metric_of(metric).better
        levels.append((sign, sign * new / old) if old > 0 else (float("nan"), float("nan")))
    return float(np.mean([after for _, after in levels]) - np.mean([before for before, _ in levels]))
