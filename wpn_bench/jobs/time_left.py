"""Estimate, during a run, how long its remaining jobs will take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import mean

from wpn_bench.core.weights import count_parameters
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.rates import Rates, count_items, job_kind, machine_name
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import MANIFEST, Store

PROGRESS_COUNTS = 0.1  # share of a job's items after which its own speed is used
TOO_FEW = 0.02  # share of a job's items from which its speed cannot be told: the first batch counts when it ends


class TimeLeft:
    """Estimates the remaining time of a run from the durations of jobs of the same kind in this run or in earlier runs.

    If no job of a kind was measured, the mean duration of the jobs executed in this run is used.

    Args:
        store: The store, which holds the durations of earlier runs.
        clock: Returns the seconds of a monotonic clock.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._unfinished: set[str] = set()
        self._left: dict[str, Job] = {}  # unfinished jobs that are not in the store
        self._started: dict[str, float] = {}
        self._progress: dict[str, tuple[int, int]] = {}  # (finished items, all items) of each running job
        self._most_running = 1
        self._measured: dict[str, list[float]] = defaultdict(list)  # seconds per item by kind (per job if unknown)
        self._whole: list[float] = []  # seconds of each executed job
        self._items: dict[str, int] = {}
        self._earlier: dict[str, float] = {}
        self._rates: Rates | None = None

    def add(self, jobs: Iterable[Job]) -> None:
        """Add jobs that will be executed. A job whose artifact is in the store takes no time."""
        parameters: dict[str, int] = {}
        for job in jobs:
            self._unfinished.add(job.digest)
            if (self._store.path(job.stage, job.digest) / MANIFEST).is_file():
                continue
            self._left[job.digest] = job
            self._rates = self._rates or Rates.from_store(self._store.root)
            kind, model = job_kind(job.stage, job.params), _model_of(job)
            items = count_items(job) or self._rates.items(kind)
            if not items:
                continue
            self._items[job.digest] = items
            if model is not None and model.digest not in parameters:
                parameters[model.digest] = count_parameters(model.path)
            size = 0 if model is None else parameters[model.digest]
            found = self._rates.estimate(kind, items, size, _machine(job))
            if found.measured != "none":
                self._earlier[job.digest] = found.seconds

    def start(self, job: Job) -> None:
        """Record that a job has started."""
        self._started.setdefault(job.digest, self._clock())
        self._most_running = max(self._most_running, len(self._started))

    def progress(self, digest: str, done: int, total: int | None) -> None:
        """Record how many items of a running job are finished.

        Args:
            digest: Digest of the job.
            done: Number of finished items.
            total: Number of items; None if unknown.
        """
        if total:
            self._progress[digest] = (done, total)

    def finish(self, outcome: Outcome) -> None:
        """Record that a job has ended."""
        job = outcome.job
        self._unfinished.discard(job.digest)
        self._left.pop(job.digest, None)
        self._progress.pop(job.digest, None)
        began = self._started.pop(job.digest, None)
        if outcome.status == "done" and began is not None:
            seconds = self._clock() - began
            self._whole.append(seconds)
            self._measured[job_kind(job.stage, job.params)].append(seconds / self._items.get(job.digest, 1))

    def seconds(self, jobs: int = 0) -> float | None:
        """Return the expected seconds until all jobs have ended, or None if they cannot be estimated yet.

        `jobs` is the number of all unfinished jobs, including those that are planned but were not yet added by `add`.
        """
        now, total = self._clock(), 0.0
        usual = mean(self._whole) if self._whole else None
        for digest, job in list(self._left.items()):  # another thread may change it
            kind = job_kind(job.stage, job.params)
            expected = usual
            if kind in self._measured:
                expected = mean(self._measured[kind]) * self._items.get(digest, 1)
            elif digest in self._earlier:
                expected = self._earlier[digest]
            if expected is None:
                return None
            elapsed = now - self._started.get(digest, now)
            done, items = self._progress.get(digest, (0, 0))
            rest = elapsed * (items - done) / done if done else 0.0
            if 0 < done < TOO_FEW * items:
                if elapsed > expected:
                    return None
                total += expected - elapsed
            elif done >= PROGRESS_COUNTS * items > 0 and stage_of(job.stage).passes == 1:
                total += rest  # the job's own speed says more than that of earlier jobs
            else:
                total += max(0.0, expected - elapsed, rest)
        if (unknown := jobs - len(self._unfinished)) > 0:
            if usual is None:
                return None
            total += unknown * usual
        return total / self._most_running


def _model_of(job: Job) -> External | None:
    """Return the model that a job uses, or from which its model is trained. None if the job uses no model."""
    need = job.needs.get("model")
    while isinstance(need, Job):
        need = need.needs.get("model")
    return need


def _machine(job: Job) -> str:
    try:
        return machine_name(str(job.local.get("device", "cpu")))
    except (RuntimeError, AssertionError):  # only the workers have a GPU
        return ""
