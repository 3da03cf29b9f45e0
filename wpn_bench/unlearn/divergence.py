"""Detect that training has diverged: a loss or gradient is not finite, or the loss has exploded."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wpn_bench.errors import JobFailed

PATIENCE = 5  # number of consecutive steps out of range, so that a single outlier batch does not stop training
RISE = 10.0
FALL = 1000.0
OVERFLOWS = 20  # largest number of fp16 overflows; each halves the loss scale, and 2**16 / 2**20 is far below 1


def exploded(losses: Sequence[float]) -> bool:
    """Return whether the last five of `losses` are all out of range. `losses[0]` is the loss before any update.

    The range has two bounds:

    - The upper bound is first + 10 * max(1, |first|), where `first` is the first loss. A fine-tuning loss that begins
      at 3 may reach 33 nats per token. This is three times the loss of uniform predictions (10.8 for 50,000 tokens).
    - The lower bound is first - 1000 * max(1, |first|). The loss of gradient ascent has no lower bound, and in a
      sound training falls by tens or hundreds of nats per token. A fall by thousands needs logits that only diverging
      weights produce.

    A model that lost all its abilities may stay within these bounds. It is evaluated and reported.
    """
    if len(losses) <= PATIENCE:
        return False
    first = losses[0]
    size = max(1.0, abs(first))
    last = losses[-PATIENCE:]
    return all(x > first + RISE * size for x in last) or all(x < first - FALL * size for x in last)


def diverged(what: str, step: int, lr: float, before: Sequence[float] = ()) -> JobFailed:
    """Return the error for a training that diverged.

    Args:
        what: What is wrong, as the subject of the message.
        step: Number of the step, counted from 1.
        lr: Peak learning rate.
        before: Losses of the earlier steps.

    Returns:
        The error, which contains the first and last loss and a hint.
    """
    course = f" (first {before[0]:.4g}, last {before[-1]:.4g})" if before and math.isfinite(before[-1]) else ""
    return JobFailed(
        f"training diverged: {what} at step {step}{course}; lower lr (now {lr:.2g}) or the number of steps,"
        " or raise warmup_steps"
    )
