"""Progress bars on a terminal: one for the whole run and one for each current job.

Without a terminal, progress is written as lines instead (see `progress_lines`).
"""

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


def in_groups(size: int, advance: Advance) -> Advance:
    """Count finished groups of items.

    Args:
        size: Number of items of a group.
        advance: Called with the number of groups finished since its last call.

    Returns:
        A function to call with the number of items finished since its last call.
    """
    done = 0

    def items_done(n: int) -> None:
        nonlocal done
        before = done // size
        done += n
        advance(done // size - before)

    return items_done


def in_parts(parts: int, items: int, advance: Advance) -> Advance:
    """Count items whose work is done in parts, in any order.

    Args:
        parts: Number of parts of all items together.
        items: Number of items.
        advance: Called with the number of items finished since its last call: the same share of `items` as of `parts`.

    Returns:
        A function to call with the number of parts finished since its last call.
    """
    done = 0

    def parts_done(n: int) -> None:
        nonlocal done
        before, done = done, done + n
        if more := done * items // max(parts, 1) - before * items // max(parts, 1):
            advance(more)

    return parts_done


class Reporter:
    """The base class of all progress displays. It shows no progress itself and is used with `--quiet` and in tests.

    With `verbose`, it prints one line for each finished job to standard error.

    Attributes:
        shows_items: Whether progress within a job is displayed. If not, jobs need not compute it.
    """

    shows_items: ClassVar[bool] = False

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.time_left: Callable[[int], float | None] = lambda jobs: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def plan(self, total: int) -> None:
        """Add `total` to the number of jobs in this run."""

    def start(self, label: str) -> None:
        """Report that a job starts."""

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        """Report how many items a job has.

        Args:
            total: Number of items; None if unknown.
            unit: Name of the items, such as "prompts".
            label: Label of the job; None means the job that started last.

        Returns:
            A function to call with the number of items finished since the last call.
        """
        return lambda n: None

    def finish(self, label: str, status: str, seconds: float) -> None:
        """Report that a job ended.

        Args:
            label: Label of the job.
            status: `done`, `cached`, `failed` or `skipped`.
            seconds: Wall time of the job in seconds.
        """
        if self.verbose:
            print(f"{status:8s} {seconds:7.1f} s  {label}", file=sys.stderr, flush=True)

    def expect(self, time_left: Callable[[int], float | None]) -> None:
        """Set the function that estimates the time left.

        It gets the number of jobs that have not ended, and returns the seconds that they will take, or None if unknown.
        """
        self.time_left = time_left

    @contextmanager
    def activity(self, label: str) -> Iterator[None]:
        """Show an activity that is not a job, such as reading the inputs or writing the report."""
        yield

    def note(self, text: str) -> None:
        """Print a message that stays on the screen."""
        print(text, file=sys.stderr, flush=True)


class Bars(Reporter):
    """Progress bars on standard error: the run at the top, and below it the current jobs with their remaining time."""

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
        self._current: dict[str, TaskID] = {}  # by label

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
        self._current[label] = self._progress.add_task(label, total=None, unit="")

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        job = self._current.get(label or next(reversed(self._current), ""))
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
        if label in self._current:
            self._progress.remove_task(self._current.pop(label))

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
    """Return the progress display for standard error: bars on a terminal, and otherwise lines of text.

    Args:
        verbose: Whether to print a line for each finished job as well.
        quiet: Whether to show no progress.

    Returns:
        The reporter, which is a context manager.
    """
    from wpn_bench.core.progress_lines import Lines

    if quiet:
        return Reporter(verbose)
    return Bars(verbose) if sys.stderr.isatty() else Lines(sys.stderr)


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024) if sys.platform == "darwin" else peak / 1024


class Stopwatch:
    """Measures the seconds since it was created."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
