"""Split the value of a task into a score and a weight of each document, for any metric of lm-eval.

lm-eval computes the value of a task from what its metric returns for each document. Let s_i be the score and w_i the weight
of document i. The value is

* `mean`: sum(s_i) / sum(w_i). For a mean, w_i = 1. For bits per byte, s_i is the negative log-likelihood in bits and w_i
  the number of bytes. For the Brier score, s_i is the sum of squared errors of the probabilities, from 0 to 2.
* `log`: exp(sum(s_i) / sum(w_i)), which is a perplexity. s_i is the negative log-likelihood in nats, and w_i is 1, or the number
  of words or bytes.
* `whole`: any other function of all documents together, such as BLEU, F1 or a median. Every s_i is the value itself, so
  that there is no interval.

An accuracy is a `mean` of values from 0 to 1 where higher is better. Any other score has its own unit: its rows in
results.json are named by its direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wpn_bench.benchmarks.scores import Score, direction_hint
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

MEAN = "mean"
LOG = "log"
WHOLE = "whole"


def higher_is_better(task: str, directions: Mapping[str, bool | None], score: Score) -> bool:
    """Return whether a higher value of a score is better: as the user says, or else as lm-eval says.

    Args:
        task: Name of the task.
        directions: What lm-eval says for each metric of the task.
        score: The score.

    Returns:
        The direction.

    Raises:
        UserError: Neither says it.
    """
    if score.direction:
        return score.direction == "higher"
    found = directions.get(score.metric)
    if found is None:
        raise UserError(
            f"the task {task!r} does not say whether a higher value of {score.metric!r} is better",
            direction_hint(task, score),
        )
    return found


class Parts:
    """How the documents of a task make up the value of one of its metrics.

    Attributes:
        scale: `mean`, `log` or `whole` (see the docstring of the module).
    """

    def __init__(self, task: ConfigurableTask, metric: str) -> None:
        from lm_eval.api import metrics

        kinds: dict[Any, tuple[str, Callable[[Any], tuple[float, float]]]] = {
            metrics.mean: (MEAN, lambda value: (float(value), 1.0)),
            metrics.nanmean: (MEAN, _without_nan),
            metrics.bits_per_byte: (MEAN, lambda value: (-float(value[0]) / math.log(2), float(value[1]))),
            metrics.brier_score: (MEAN, lambda value: (_brier(*value), 1.0)),
            metrics.perplexity: (LOG, lambda value: (-float(value), 1.0)),
            metrics.weighted_perplexity: (LOG, lambda value: (-float(value[0]), float(value[1]))),
        }
        # lm-eval takes the mean of a metric without an aggregation.
        aggregation = task.aggregation().get(metric, metrics.mean)
        known = kinds.get(aggregation)
        self.scale = known[0] if known else WHOLE
        self._split = known[1] if known else None

    def of(self, found: Any, value: float) -> tuple[float, float]:
        """Return the score and the weight of a document.

        Args:
            found: What the metric returned for the document.
            value: The value of the task.

        Returns:
            The score and the weight.
        """
        return (value, 1.0) if self._split is None else self._split(found)

    def is_number(self, found: Any) -> bool:
        """Return whether the metric returned what its aggregation needs."""
        try:
            self.of(found, 0.0)
        except (TypeError, ValueError, IndexError):
            return False
        return True


def _without_nan(value: Any) -> tuple[float, float]:
    number = float(value)
    return (0.0, 0.0) if math.isnan(number) else (number, 1.0)


def _brier(gold: int, probabilities: Any) -> float:
    """Return sum_k (p_k - 1[k = gold])^2 (Brier 1950)."""
    return float(sum((float(p) - (k == gold)) ** 2 for k, p in enumerate(probabilities)))
