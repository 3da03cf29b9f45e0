"""Execute jobs in several processes on this machine, for small models.

A product of small matrices gains little from a second thread, because the threads spend their time waiting for each
other. So this process can start helpers (see `helper`). All of them execute jobs, each as soon as its inputs are in the
store, and with one thread.

Sums over the examples of a batch, such as gradients, depend on the number of threads. So a job whose examples are not
independent (a training, a search) keeps the number of threads that it has in a single process. Such jobs run in helpers.
(The training of a small model uses one thread in any case: see `unlearn/train.py`.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence

from wpn_bench.core.machine import free_memory, torch_threads
from wpn_bench.core.progress import Advance, Reporter
from wpn_bench.jobs.executor import (
    WAIT_SECONDS,
    LocalExecutor,
    claim_and_execute,
    need_paths,
    outcome_without_work,
    report_crash,
)
from wpn_bench.jobs.helper import Helper, HelperLost, external
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import MANIFEST, Store

MOST_PROCESSES = 4  # by default
PROCESS_BYTES = 2 * 10**9  # memory for PyTorch, the lab's models and a batch


def processes_for_small_models() -> int:
    """Return how many processes to use by default for a model as small as the lab's.

    This is the number of PyTorch's threads (OMP_NUM_THREADS if it is set), but at most `MOST_PROCESSES`, and not more than
    the free memory allows. It is 1 with a GPU, as a process for each core would crowd its memory.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    return max(1, min(torch.get_num_threads(), MOST_PROCESSES, free_memory() // PROCESS_BYTES))


class ProcessExecutor(LocalExecutor):
    """Runs jobs in this process and in helpers.

    Args:
        store: The artifact store.
        reporter: Shows the progress.
        workers: Number of processes.
    """

    def __init__(self, store: Store, reporter: Reporter, workers: int) -> None:
        super().__init__(store, reporter)
        self._workers = workers
        self._helpers: list[Helper] = []

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        listed = list({job.digest: job for job in jobs}.values())
        todo = [job for job in listed if not (self.store.path(job.stage, job.digest) / MANIFEST).is_file()]
        wanted = min(self._workers, len(todo)) - 1
        while len(self._helpers) < wanted:
            self._helpers.append(Helper(self.store.root))
        if not self._helpers or wanted < 1:
            return super().run(listed, announce)
        if announce:
            self.reporter.plan(len(listed))
        if self.reporter.shows_items:
            self.time_left.add(listed)
        schedule = _Schedule(self, listed)
        lost = schedule.run(self._helpers[:wanted])
        for helper in lost:
            helper.stop()
        self._helpers = [helper for helper in self._helpers if helper not in lost]
        return {job.digest: schedule.outcomes[job.digest] for job in listed}

    def stop(self) -> None:
        """End the helpers."""
        for helper in self._helpers:
            helper.stop()
        self._helpers.clear()


def has_independent_items(job: Job) -> bool:
    """Return whether the items of a job are independent, so that its result does not depend on the number of threads."""
    return stage_of(job.stage).shardable


class _Schedule:
    """The state of one call of `ProcessExecutor.run`. Its methods may be called from any thread."""

    def __init__(self, executor: ProcessExecutor, jobs: Sequence[Job]) -> None:
        import torch

        self.store, self.reporter, self.time_left = executor.store, executor.reporter, executor.time_left
        self.outcomes: dict[str, Outcome] = {}
        self._left = {job.digest: job for job in jobs}
        self._taken: set[str] = set()
        self._not_before: dict[str, float] = {}  # jobs that another run is executing
        self._changed = threading.Condition(threading.RLock())
        self._threads = torch.get_num_threads()
        self._serving = 0  # number of helpers
        self._error: BaseException | None = None
        self._stopped = self._reported_waiting = False

    def run(self, helpers: Sequence[Helper]) -> list[Helper]:
        """Execute all jobs. Returns the helpers that were lost.

        Args:
            helpers: The helpers.

        Raises:
            UserError: The run cannot continue.
        """
        lost: list[Helper] = []
        self._serving = len(helpers)
        for helper in helpers:
            threading.Thread(target=self._serve, args=(helper, lost), name="helper", daemon=True).start()
        try:
            while (job := self._take(is_helper=False)) is not None:
                with torch_threads(1 if has_independent_items(job) else self._threads):
                    self._finish(job, self._execute(job))
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
        return lost

    def _serve(self, helper: Helper, lost: list[Helper]) -> None:
        """Give jobs to a helper until none is left."""
        while (job := self._take(is_helper=True)) is not None:
            try:
                number = 1 if has_independent_items(job) else self._threads
                sent = external(job, need_paths(job, self.outcomes))
                fields = helper.execute(sent, number, lambda job=job: self._start(job), self._counted(job))  # type: ignore[misc]
                self._finish(job, None if fields is None else Outcome(job, **fields))
            except HelperLost:
                with self._changed:
                    lost.append(helper)
                    self._serving -= 1
                    self._taken.discard(job.digest)
                    if not self._stopped:
                        self.reporter.note(f"lost a process during {job.label}: another one continues")
                    self._changed.notify_all()
                return
            except BaseException as e:
                with self._changed:
                    self._error = e
                    self._changed.notify_all()
                return

    def _take(self, is_helper: bool) -> Job | None:
        """Wait for a job that can be executed. Returns None if none is left."""
        with self._changed:
            while True:
                if self._stopped:
                    return None
                if self._error is not None:
                    if is_helper:
                        return None
                    raise self._error
                job = self._next(is_helper)
                if job is not None:
                    self._taken.add(job.digest)
                    return job
                if not self._left:
                    return None
                if not self._taken and not self._reported_waiting:
                    self._reported_waiting = True
                    label = next(iter(self._left.values())).label
                    self.reporter.note(f"waiting: another run with this store is executing {label}")
                self._changed.wait(WAIT_SECONDS)

    def _next(self, is_helper: bool) -> Job | None:
        """Return the next job that this process executes. Jobs that need no execution end here."""
        now = time.monotonic()
        ready = []
        for digest, job in list(self._left.items()):
            if digest in self._taken or self._not_before.get(digest, now) > now:
                continue
            if any(need.digest in self._left for need in job.needs.values() if not isinstance(need, External)):
                continue
            ready.append(job)
        # Other jobs need the models, so trainings come first.
        wide = [job for job in ready if not has_independent_items(job)]
        narrow = [job for job in ready if has_independent_items(job)]
        for job in [*wide, *narrow] if is_helper or not self._serving else narrow:
            outcome = outcome_without_work(self.store, job, self.outcomes)
            if outcome is None:
                return job
            self._end(job, outcome)
        return None

    def _execute(self, job: Job) -> Outcome | None:
        """Execute a job in this process. Returns None if another run is executing it."""
        return claim_and_execute(self.store, job, self.outcomes, lambda: self._start(job), self._counted(job))

    def _start(self, job: Job) -> None:
        with self._changed:
            self.time_left.start(job)
            self.reporter.start(job.label)

    def _finish(self, job: Job, outcome: Outcome | None) -> None:
        with self._changed:
            self._taken.discard(job.digest)
            if outcome is None:
                self._not_before[job.digest] = time.monotonic() + WAIT_SECONDS
            elif not self._stopped:
                self._end(job, outcome)
            self._changed.notify_all()

    def _end(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job.digest] = outcome
        del self._left[job.digest]
        self._changed.notify_all()
        self.time_left.finish(outcome)
        self.reporter.finish(job.label, outcome.status, outcome.seconds)
        report_crash(self.reporter, outcome)

    def _counted(self, job: Job) -> _Counter:
        return _Counter(self, job)

    def count(self, job: Job, done: int, total: int | None) -> None:
        """Record how many items of a job are finished."""
        with self._changed:
            self.time_left.progress(job.digest, done, total)


class _Counter:
    """The `progress` of one job: it updates the display and the estimate of the time left."""

    def __init__(self, schedule: _Schedule, job: Job) -> None:
        self._schedule, self._job = schedule, job

    def __call__(self, total: int | None, unit: str = "") -> Advance:
        advance, done = self._schedule.reporter.items(total, unit, self._job.label), 0

        def counted(n: int) -> None:
            nonlocal done
            done += n
            self._schedule.count(self._job, done, total)
            advance(n)

        return counted
