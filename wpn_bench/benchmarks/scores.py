"""Choose the metric and filter that score a task, before anything is computed.

A score is a number from 0 to 1 for each document, and higher is better. The score of a task is the mean over its
documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from wpn_bench.benchmarks.definitions import Function, TaskDefinition
from wpn_bench.errors import UserError

_PREFERRED = ("acc", "exact_match", "acc_norm")
_MEANS = {*_PREFERRED, "acc_bytes", "acc_mutual_info"}  # by default, lm-eval aggregates these by the mean
_DEFAULTS = {"multiple_choice": ("acc", "acc_norm"), "loglikelihood": ("acc",), "generate_until": ("exact_match",)}


@dataclass(frozen=True)
class Score:
    """A metric of lm-eval, computed from the answers that a filter returns."""

    metric: str
    filter: str = "none"

    def __str__(self) -> str:
        return f"{self.metric},{self.filter}"

    @staticmethod
    def parse(text: str) -> Score:
        """Read `METRIC` or `METRIC,FILTER`."""
        metric, _, name = text.partition(",")
        return Score(metric.strip(), name.strip() or "none")


def filters_of(definition: TaskDefinition) -> list[str]:
    """Return the names of the filters of a task."""
    return [str(f.get("name")) for f in definition.fields.get("filter_list") or () if isinstance(f, dict)] or ["none"]


def choose_score(
    definition: TaskDefinition, asked: Mapping[str, str] | None = None, preferred: Sequence[Score] = ()
) -> Score:
    """Choose the score of a task: the one that the user names, or else accuracy, exact match, or its only metric.

    Args:
        definition: The task.
        asked: Maps the name or pattern of tasks to `METRIC[,FILTER]`.
        preferred: Scores that are chosen if the task has them and the user names none, such as the score that its group
            averages.

    Returns:
        The score. It uses the first filter if no other is named.

    Raises:
        UserError: The task has no such metric or filter, or none that is a mean over documents where higher is better.
    """
    task, usable, refused = definition.name, *_metrics(definition)
    filters = filters_of(definition)
    named = next((text for pattern, text in (asked or {}).items() if fnmatchcase(task, pattern)), None)
    if named is not None:
        score = Score.parse(named)
        if score.filter == "none" and "," not in named:
            score = Score(score.metric, filters[0])
        if score.metric in refused:
            raise UserError(
                f"the task {task!r} cannot be scored by {score.metric!r}: {refused[score.metric]}", _others(usable)
            )
        if usable and score.metric not in usable and "process_results" not in definition.fields:
            raise UserError(f"the task {task!r} has no metric {score.metric!r}", _others(usable))
        if score.filter not in filters and "class" not in definition.fields:
            raise UserError(f"the task {task!r} has no filter {score.filter!r}", f"it has {', '.join(filters)}")
        return score
    if "class" in definition.fields:
        return Score("acc")  # the metrics of this task are only known when it is loaded
    for score in preferred:
        if score.metric in usable and score.filter in (*filters, "*"):
            return score if score.filter != "*" else Score(score.metric, filters[0])
    metric = next((m for m in _PREFERRED if m in usable), usable[0] if len(usable) == 1 else None)
    if metric is None and usable:
        raise UserError(
            f"the task {task!r} has several metrics but no accuracy: {', '.join(usable)}",
            f"choose one: --metric {task}=METRIC",
        )
    if metric is None:
        why = "; ".join(f"{name} {reason}" for name, reason in refused.items()) or "it has no metrics"
        raise UserError(
            f"the task {task!r} has no score that wpn-bench can compare document by document: {why}",
            "remove it from --benchmarks",
        )
    return Score(metric, filters[0])


def _others(usable: Sequence[str]) -> str:
    return f"it has {', '.join(usable)}" if usable else "remove it from --benchmarks"


def _metrics(definition: TaskDefinition) -> tuple[list[str], dict[str, str]]:
    """Return the metrics that can score a task, and why the others cannot."""
    listed: list[Any] = definition.fields.get("metric_list") or []
    if not listed:
        return list(_DEFAULTS.get(str(definition.fields.get("output_type")), ())), {}
    usable, refused = [], {}
    for one in listed:
        metric, aggregation = one.get("metric"), one.get("aggregation")
        name = str(metric).rpartition(".")[2] if isinstance(metric, Function) else str(metric)
        if one.get("higher_is_better") is False:
            refused[name] = "is better if it is lower"
        elif aggregation == "mean" or (aggregation is None and name in _MEANS):
            usable.append(name)
        else:
            refused[name] = "is not a mean over documents"
    return list(dict.fromkeys(usable)), refused
