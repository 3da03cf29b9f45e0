"""Progress lines with the remaining time, for the training of the lab's models."""

from __future__ import annotations

import sys
import time

__all__ = ["ProgressLine"]


class ProgressLine:
    """Prints `label: step/total, figures, remaining time` to standard error.

    Args:
        label: Name of the training.
        total: Number of steps.
        every: Minimum number of seconds between two lines.
    """

    def __init__(self, label: str, total: int, every: float = 10.0) -> None:
        self.label, self.total, self.every = label, total, every
        self.start = self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def update(self, step: int, **figures: float) -> None:
        """Report a finished step. The last step is always printed.

        Args:
            step: Number of finished steps.
            **figures: Values to print, such as the loss.
        """
        now = time.monotonic()
        if step < self.total and now - self.last < self.every:
            return
        self.last = now
        left = (now - self.start) / max(step, 1) * (self.total - step)
        parts = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"{self.label}: {step}/{self.total}, {parts}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
