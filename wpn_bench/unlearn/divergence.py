"""Detect training that diverged: losses and gradients that are not finite, and losses that explode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wpn_bench.errors import JobFailed

PATIENCE = 5  # consecutive steps, so that a single outlier batch does not stop training
RISE = 10.0
FALL = 1000.0
OVERFLOWS = 20  # each overflow halves the loss scale of fp16, and 2**16 / 2**20 is far below 1


def exploded(losses: Sequence[float]) -> bool:
    """Return whether the last five of `losses` (one per step, the first before any update) are all out of range.

    The range has two bounds:

    - first + 10 * max(1, |first|): the loss has risen by ten times its initial size. For a fine-tuning loss that begins at 3
      the bound is 33, three times the loss of uniform predictions (ln of 50,000 tokens is 10.8).
    - first - 1000 * max(1, |first|): gradient ascent has no lower bound, and reaches tens or hundreds of nats per token
      without a fault. Thousands of nats need logits that only diverging weights produce.

    A model that lost all its abilities but stays within the bounds does not count: it is evaluated and reported.
    """
    if len(losses) <= PATIENCE:
        return False
    first = losses[0]
    size = max(1.0, abs(first))
    last = losses[-PATIENCE:]
    return all(x > first + RISE * size for x in last) or all(x < first - FALL * size for x in last)


def diverged(what: str, step: int, lr: float, before: Sequence[float] = ()) -> JobFailed:
    """Make the error for training that diverged.

    Args:
        what: What is wrong, as the subject of the message.
        step: Number of the step, from 1.
        lr: The peak learning rate.
        before: Losses of the steps before.

    Returns:
        The error, with the first and last loss and a hint.
    """
    course = f" (first {before[0]:.4g}, last {before[-1]:.4g})" if before and math.isfinite(before[-1]) else ""
    return JobFailed(
        f"training diverged: {what} at step {step}{course}; lower lr (now {lr:.2g}) or the number of steps,"
        " or raise warmup_steps"
    )
