"""Progress lines with time left, for the two trainings of the lab."""

from __future__ import annotations

import sys
import time

__all__ = ["ProgressLine"]


class ProgressLine:
    """Prints `label: step/total, figures, time left` to standard error, at most every `every` seconds."""

    def __init__(self, label: str, total: int, every: float = 10.0) -> None:
        self.label, self.total, self.every = label, total, every
        self.start = self.last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.start

    def update(self, step: int, **figures: float) -> None:
        """Reports that `step` of `total` steps are done; the last step is always printed."""
        now = time.monotonic()
        if step < self.total and now - self.last < self.every:
            return
        self.last = now
        left = (now - self.start) / max(step, 1) * (self.total - step)
        parts = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"{self.label}: {step}/{self.total}, {parts}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
