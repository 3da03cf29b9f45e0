"""Progress for people: one bar for the run, one for the job at hand. Silent when the output is not a terminal."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


Advance = Callable[[int], None]


class Reporter:
    """Shows nothing. Base class and the choice for pipes, CI logs and tests.

    With `verbose`, one line a finished job goes to standard error. `shows_items`: what `items` returns is worth calling.
    """

    shows_items: ClassVar[bool] = False

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def plan(self, total: int) -> None:
        """Announce `total` jobs, beside those announced before."""

    def start(self, label: str) -> None:
        """A job begins."""

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        """The job of this label (None: the one that began last) has `total` items (None: unknown); returns the function to
        call with each n done."""
        return lambda n: None

    def finish(self, label: str, status: str, seconds: float) -> None:
        """A job ended as `done`, `cached`, `failed` or `skipped`."""
        if self.verbose:
            print(f"{status:8s} {seconds:7.1f} s  {label}", file=sys.stderr, flush=True)

    @contextmanager
    def activity(self, label: str) -> Iterator[None]:
        """Work that is no job of the run: reading the inputs, writing the report."""
        yield

    def note(self, text: str) -> None:
        """A line for the reader that stays."""
        print(text, file=sys.stderr, flush=True)


class Bars(Reporter):
    """Rich bars on standard error: the whole run above, the jobs at hand below, with the time left."""

    shows_items = True

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress: Progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._run: TaskID | None = None
        self._jobs = 0
        self._at_hand: dict[str, TaskID] = {}  # by label

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def plan(self, total: int) -> None:
        if self._run is None:
            self._run = self._progress.add_task("run", total=0, unit="jobs")
        self._jobs += total
        self._progress.update(self._run, total=self._jobs)

    def start(self, label: str) -> None:
        self._remove(label)
        self._at_hand[label] = self._progress.add_task(label, total=None, unit="")

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        job = self._at_hand.get(label or next(reversed(self._at_hand), ""))
        if job is None:
            return lambda n: None
        self._progress.reset(job, total=total, unit=unit)
        return lambda n: self._progress.advance(job, n)

    def finish(self, label: str, status: str, seconds: float) -> None:
        self._remove(label)
        if self._run is not None:
            self._progress.advance(self._run)
        if status == "failed" or self.verbose:
            self._progress.console.print(f"{status} {label} ({seconds:.1f} s)")

    def _remove(self, label: str) -> None:
        if label in self._at_hand:
            self._progress.remove_task(self._at_hand.pop(label))

    @contextmanager
    def activity(self, label: str) -> Iterator[None]:
        task = self._progress.add_task(label, total=None, unit="")
        try:
            yield
        finally:
            self._progress.remove_task(task)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


def reporter(*, verbose: bool = False, quiet: bool = False) -> Reporter:
    """Bars on a terminal, silence elsewhere or when `quiet`."""
    if quiet or not sys.stderr.isatty():
        return Reporter(verbose)
    return Bars(verbose)


def peak_memory_mb() -> float:
    """What this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024) if sys.platform == "darwin" else peak / 1024


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
