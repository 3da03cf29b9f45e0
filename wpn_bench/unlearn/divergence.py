"""When training no longer trains: losses and gradients that are no numbers, and losses that run away."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wpn_bench.errors import JobFailed

PATIENCE = 5  # steps in a row, so that one odd batch ends nothing
RISE = 10.0
FALL = 1000.0
OVERFLOWS = 20  # fp16's loss scale halves at each overflow: 2**16 / 2**20 is far below 1


def exploded(losses: Sequence[float]) -> bool:
    """Whether the last five `losses` (one a step, the first taken before any update) all lie beyond what training does:

    - above first + 10 * max(1, |first|): what is being minimised has risen by ten times its size. A fine-tuning loss
      that begins at 3 trips at 33, three times what a model that knows nothing pays (ln of 50,000 tokens is 10.8).
    - below first - 1000 * max(1, |first|): gradient ascent has no lower bound and legitimately ends at tens or hundreds
      of nats a token; thousands need logits that only weights on the run produce.

    A model that is merely ruined does not trip this: it is measured, and the report says what became of it.
    """
    if len(losses) <= PATIENCE:
        return False
    first = losses[0]
    size = max(1.0, abs(first))
    last = losses[-PATIENCE:]
    return all(x > first + RISE * size for x in last) or all(x < first - FALL * size for x in last)


def diverged(what: str, step: int, lr: float, before: Sequence[float] = ()) -> JobFailed:
    """The error for training that diverged at `step` (from 1); `what` is wrong, `before` are the losses until then."""
    course = f" (first {before[0]:.4g}, last {before[-1]:.4g})" if before and math.isfinite(before[-1]) else ""
    return JobFailed(
        f"training diverged: {what} at step {step}{course}; lower lr (now {lr:.2g}) or the number of steps,"
        " or raise warmup_steps"
    )
