"""Progress as lines of text, for standard error without a terminal and for the log file in the run folder.

A line is written when a job starts and when it ends. During a job a separate thread writes one line per minute, even if
the job reports no progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from wpn_bench.core.progress import Advance, Reporter
from wpn_bench.errors import redact_message, text_of
from wpn_bench.redact import redact

INTERVAL_SECONDS = 60.0  # longest time between two lines while a job is running
_LOOK_SECONDS = 1.0


@dataclass
class _Running:
    """A running job or activity. `number` is its position in the run, or 0 for an activity."""

    label: str
    number: int
    started: float
    said: float
    done: int = 0
    total: int | None = None
    unit: str = ""
    counter: object = field(default_factory=object)


class Lines(Reporter):
    """Writes lines to a stream or a file. Without a stream, lines are kept in memory until `open` names the file.

    Args:
        stream: Where to write; None means a file that `open` names later.
        clock: Returns the seconds of a monotonic clock.
        now: Returns the time of day that a line begins with.
    """

    shows_items = True

    def __init__(
        self,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        super().__init__()
        self._stream, self._clock, self._now = stream, clock, now
        self._kept: list[str] = []
        self._file: IO[str] | None = None
        self._planned = self._number = self._finished = 0
        self._running: dict[str, _Running] = {}
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self, file: Path) -> None:
        """From now on, append to `file`. The lines kept so far are written first."""
        with self._lock, suppress(OSError):
            self._file = self._stream = file.open("a", encoding="utf-8", errors="backslashreplace")
            kept, self._kept = self._kept, []
            for line in kept:
                self._put(line)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self._file.close()
            self._file = self._stream = None

    def plan(self, total: int) -> None:
        with self._lock:
            self._planned += total

    def start(self, label: str) -> None:
        with self._lock:
            self._number += 1
            now = self._clock()
            self._running[label] = _Running(label, self._number, now, now)
            if self._planned:  # without planned jobs, this is one step of a short command
                self._say(f"job {self._number} of {self._planned}, {label}: started{self._left()}")

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        with self._lock:
            jobs = [name for name, job in self._running.items() if job.number]
            job = self._running.get(label or (jobs[-1] if jobs else ""))
            if job is None:
                return lambda n: None
            job.done, job.total, job.unit, job.counter = 0, total, unit, object()
            mine = job.counter

        def advance(n: int) -> None:
            with self._lock:
                if job.counter is mine:
                    job.done += n

        return advance

    def finish(self, label: str, status: str, seconds: float) -> None:
        with self._lock:
            job = self._running.pop(label, None)
            self._finished += 1
            if job is None:  # the job was cached or skipped, so it never started
                self._number += 1
            number = self._number if job is None else job.number
            took = f" in {seconds:.1f} s" if job is not None else ""
            self._say(f"job {number} of {self._planned}, {label}: {status}{took}{self._left()}")

    @contextmanager
    def activity(self, label: str) -> Iterator[None]:
        with self._lock:
            now = self._clock()
            self._running[label] = _Running(label, 0, now, now)
        try:
            yield
        finally:
            with self._lock:
                self._running.pop(label, None)

    def note(self, text: str) -> None:
        self._say(text)

    def tick(self) -> None:
        """Write a line for each job that has had no line for `INTERVAL_SECONDS`."""
        with self._lock:
            now = self._clock()
            for job in self._running.values():
                if now - job.said >= INTERVAL_SECONDS:
                    job.said = now
                    where = f"job {job.number} of {self._planned}, " if job.number else ""
                    of = f" of {job.total}" if job.total is not None else ""
                    items = f"{job.done}{of} {job.unit}, " if job.unit else "at work, "
                    self._say(f"{where}{job.label}: {items}{now - job.started:.0f} s{self._left()}")

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.tick()

    def _left(self) -> str:
        left = self.time_left(self._planned - self._finished)
        if left is None:
            return ""
        return f", about {max(1, round(left / 60))} min left" if left >= 1 else ", less than 1 min left"

    def _say(self, text: str) -> None:
        line = f"{self._now():%Y-%m-%d %H:%M:%S} {redact_message(' '.join(text.split()))}\n"
        with self._lock:
            self._put(line)

    def _put(self, line: str) -> None:
        if self._stream is None:
            self._kept.append(line)
            return
        if self._file is not None:
            line = redact(line)  # log files are often shared, for example in bug reports
        with suppress(OSError, ValueError):  # a full disk or a closed pipe must not end the run
            self._stream.write(line)
            self._stream.flush()


class Logged(Reporter):
    """Passes the progress to another reporter and also writes it to the log file of the run.

    Args:
        shown: The reporter that shows the progress to the user.
        log: Writer of the log file.
    """

    shows_items = True

    def __init__(self, shown: Reporter, log: Lines) -> None:
        super().__init__(shown.verbose)
        self._both: tuple[Reporter, Reporter] = (shown, log)

    def __enter__(self) -> Self:
        for one in self._both:
            one.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        log = self._both[1]
        if e is None:
            log.note("the run is complete")
        else:
            log.note("stopped" if isinstance(e, KeyboardInterrupt) else f"ended by an error: {text_of(e)}")
        for one in self._both:
            one.__exit__(kind, e, tb)

    def plan(self, total: int) -> None:
        for one in self._both:
            one.plan(total)

    def start(self, label: str) -> None:
        for one in self._both:
            one.start(label)

    def items(self, total: int | None, unit: str = "", label: str | None = None) -> Advance:
        counts = [one.items(total, unit) if label is None else one.items(total, unit, label) for one in self._both]

        def advance(n: int) -> None:
            for count in counts:
                count(n)

        return advance

    def finish(self, label: str, status: str, seconds: float) -> None:
        for one in self._both:
            one.finish(label, status, seconds)

    @contextmanager
    def activity(self, label: str) -> Iterator[None]:
        shown, log = self._both
        with shown.activity(label), log.activity(label):
            yield

    def note(self, text: str) -> None:
        for one in self._both:
            one.note(text)

    def expect(self, time_left: Callable[[int], float | None]) -> None:
        for one in self._both:
            one.expect(time_left)
