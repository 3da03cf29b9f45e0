"""Choose the metric and filter that score a task, before anything is computed.

There are two kinds of scores. An accuracy is a mean over documents of values from 0 to 1, where higher is better. Every
other score has its own unit and its own direction, such as bits per byte or BLEU. It never enters the average of the
benchmarks (see `units.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from wpn_bench.benchmarks.definitions import Function, TaskDefinition
from wpn_bench.errors import UserError

_PREFERRED = ("acc", "exact_match", "acc_norm")
_MEANS = {*_PREFERRED, "acc_bytes", "acc_mutual_info"}  # by default, lm-eval aggregates these by the mean
_DEFAULTS = {
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("bits_per_byte", "word_perplexity", "byte_perplexity"),
    "generate_until": ("exact_match",),
}
# The default among several scores with units of their own. Bits per byte do not depend on the tokenizer.
_PREFERRED_OWN = ("bits_per_byte",)
# The directions that lm-eval declares for its own metrics. A task file need not repeat them.
HIGHER_IS_BETTER: Mapping[str, bool] = {
    **dict.fromkeys((*_MEANS, "acc_all", "likelihood", "mcc", "f1", "bleu", "chrf", "chrf++"), True),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"), False),
}
_DIRECTIONS = ("higher", "lower")


@dataclass(frozen=True)
class Score:
    """A metric of lm-eval, computed from the answers that a filter returns.

    `direction` is `higher` or `lower` if the user says which is better. It is empty if the task says it.
    """

    metric: str
    filter: str = "none"
    direction: str = ""

    @property
    def key(self) -> str:
        """Return the name of the value in lm-eval's results."""
        return f"{self.metric},{self.filter}"

    def __str__(self) -> str:
        return f"{self.key},{self.direction}" if self.direction else self.key

    @staticmethod
    def parse(text: str) -> Score:
        """Read `METRIC`, `METRIC,FILTER` or `METRIC,FILTER,DIRECTION`. Raises `UserError` for another direction."""
        metric, name, direction = (*map(str.strip, text.split(",", 2)), "", "")[:3]
        if direction not in ("", *_DIRECTIONS):
            raise UserError(
                f"the metric {text!r} has the direction {direction!r}",
                "write METRIC,FILTER,higher or METRIC,FILTER,lower",
            )
        return Score(metric, name or "none", direction)


def filters_of(definition: TaskDefinition) -> list[str]:
    """Return the names of the filters of a task."""
    return [str(f.get("name")) for f in definition.fields.get("filter_list") or () if isinstance(f, dict)] or ["none"]


def choose_score(
    definition: TaskDefinition, asked: Mapping[str, str] | None = None, preferred: Sequence[Score] = ()
) -> Score:
    """Choose the score of a task: the one that the user names, or else accuracy, exact match, or its only metric.

    Args:
        definition: The task.
        asked: Maps the name or pattern of tasks to `METRIC[,FILTER[,DIRECTION]]`.
        preferred: Scores that are chosen if the task has them and the user names none, such as the score that its group
            averages.

    Returns:
        The score. It uses the first filter if no other is named.

    Raises:
        UserError: The task has no such metric or filter, or does not say whether a higher value is better.
    """
    task, known = definition.name, _metrics(definition)
    filters = filters_of(definition)
    named = next((text for pattern, text in (asked or {}).items() if fnmatchcase(task, pattern)), None)
    if named is not None:
        score = Score.parse(named)
        if not named.split(",")[1:2] or not named.split(",")[1].strip():
            score = replace(score, filter=filters[0])
        if (reason := known.refused.get(score.metric)) and not (score.direction and score.metric in known.undirected):
            raise UserError(
                f"the task {task!r} cannot be scored by {score.metric!r}: it {reason}",
                direction_hint(task, score) if score.metric in known.undirected else _others(known.usable),
            )
        if known.listed and score.metric not in known.listed and "process_results" not in definition.fields:
            raise UserError(f"the task {task!r} has no metric {score.metric!r}", _others(known.usable))
        if score.filter not in filters and "class" not in definition.fields:
            raise UserError(f"the task {task!r} has no filter {score.filter!r}", f"it has {', '.join(filters)}")
        return score
    if "class" in definition.fields:
        return Score("acc")  # the metrics of this task are only known when it is loaded
    for score in preferred:
        if score.metric in known.usable and score.filter in (*filters, "*"):
            return score if score.filter != "*" else Score(score.metric, filters[0])
    metric = next((m for m in _PREFERRED if m in known.accuracies), None)
    metric = metric or next((m[0] for m in (known.accuracies, known.usable) if len(m) == 1), None)
    metric = metric or next((m for m in _PREFERRED_OWN if m in known.usable and not known.accuracies), None)
    if metric is None and known.usable:
        raise UserError(
            f"the task {task!r} has several metrics but no accuracy: {', '.join(known.usable)}",
            f"choose one: --metric {task}=METRIC",
        )
    if metric is None:
        why = "; ".join(f"{name} {reason}" for name, reason in known.refused.items()) or "it has no metrics"
        raise UserError(
            f"the task {task!r} has no score that wpn-bench can use: {why}",
            direction_hint(task, Score(known.undirected[0], filters[0]))
            if known.undirected
            else "remove it from --benchmarks",
        )
    return Score(metric, filters[0])


def direction_hint(task: str, score: Score) -> str:
    """Return how the user says whether a higher value of a metric is better.

    Args:
        task: Name of the task.
        score: The score.

    Returns:
        The hint of a message.
    """
    return (
        f"add --metric {task}={score.key},higher (or ,lower), or set `higher_is_better` in the metric_list of the task"
    )


def _others(usable: Sequence[str]) -> str:
    return f"it has {', '.join(usable)}" if usable else "remove it from --benchmarks"


@dataclass(frozen=True)
class _Metrics:
    """The metrics of a task.

    `usable` can score it, and `accuracies` are those of them that are a mean of values where higher is better. `refused`
    has the reason for each of the others, of which `undirected` only lack a direction.
    """

    usable: list[str]
    accuracies: list[str]
    refused: dict[str, str]
    undirected: list[str]

    @property
    def listed(self) -> set[str]:
        return {*self.usable, *self.refused}


def _metrics(definition: TaskDefinition) -> _Metrics:
    listed: list[Any] = definition.fields.get("metric_list") or []
    if not listed:
        usable = list(_DEFAULTS.get(str(definition.fields.get("output_type")), ()))
        return _Metrics(usable, [name for name in usable if name in _MEANS], {}, [])
    found = _Metrics([], [], {}, [])
    for one in listed:
        metric, aggregation = one.get("metric"), one.get("aggregation")
        name = str(metric).rpartition(".")[2] if isinstance(metric, Function) else str(metric)
        higher = one.get("higher_is_better")
        higher = HIGHER_IS_BETTER.get(name) if higher is None else higher
        if name in found.listed:
            continue
        if name == "bypass" or aggregation == "bypass":
            found.refused[name] = "is no score"
        elif higher is None:
            found.refused[name] = "does not say whether a higher value is better"
            found.undirected.append(name)
        else:
            found.usable.append(name)
            if higher and (aggregation == "mean" or (aggregation is None and name in _MEANS)):
                found.accuracies.append(name)
    return found
