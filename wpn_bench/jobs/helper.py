"""A process that executes jobs for the process of the run, on the same machine and with the same store.

The two exchange pickled messages over the standard input and output of the helper. The helper receives `HelperTask`s and
answers each with any number of progress messages and then one `HelperResult`. It ends when its input closes or the process of
the run is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from wpn_bench.core.progress import Advance, peak_memory_mb
from wpn_bench.errors import UserError
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.store import Store

PROGRESS_SECONDS = 0.3  # shortest time between two messages about finished items
_LOOK_SECONDS = 1.0  # time between two checks whether the process of the run still exists
_PROGRAM = "import sys; sys.path[:] = {path!r}; from wpn_bench.jobs.helper import serve; serve({parent})"


class HelperLost(Exception):
    """The helper has ended, because it was killed or could not start."""


@dataclass(frozen=True)
class HelperTask:
    """A job for a helper.

    Attributes:
        store: Folder of the store.
        job: The job. All its needs are `External`.
        threads: Number of PyTorch threads.
    """

    store: Path
    job: Job
    threads: int


@dataclass(frozen=True)
class HelperResult:
    """How a task ended.

    Attributes:
        fields: The fields of the job's `Outcome` except the job. None: another run is executing the job.
        error: The error that ends the run, or None.
    """

    fields: Mapping[str, Any] | None
    error: UserError | None = None


class Helper:
    """Starts a helper and gives it jobs, one at a time.

    Args:
        store: Folder of the store.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        # A thread that waits must leave the processor to the other process. Without this setting, it would wait busily.
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        program = _PROGRAM.format(path=sys.path, parent=os.getpid())
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def execute(
        self, job: Job, threads: int, started: Callable[[], None], items: Callable[[int | None, str], Advance]
    ) -> Mapping[str, Any] | None:
        """Let the helper execute a job, and wait until it ends.

        Args:
            job: The job. All its needs are `External`.
            threads: Number of PyTorch threads.
            started: Called when the job has begun.
            items: Called with the number of items and their unit. It returns a function that is called with the number
                of newly finished items.

        Returns:
            The fields of the `Outcome` except the job; None if another run is executing the job.

        Raises:
            HelperLost: The helper has ended.
            UserError: An input is invalid, or the store cannot be written.
        """
        advance: Advance = lambda n: None  # noqa: E731 - it is replaced below
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            _send(self._process.stdin, HelperTask(self._store, job, threads))
            while True:
                message = pickle.load(self._process.stdout)
                if isinstance(message, HelperResult):
                    break
                kind, *values = message
                if kind == "started":
                    started()
                elif kind == "items":
                    advance = items(*values)
                else:
                    advance(*values)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as e:
            raise HelperLost from e
        if message.error is not None:
            raise message.error
        return message.fields

    def stop(self) -> None:
        """End the helper. A job that it is executing is given up."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def external(job: Job, needs: Mapping[str, Path]) -> Job:
    """Return the job for another process: with the folders of its needs instead of the jobs that wrote them.

    Args:
        job: The job.
        needs: Folder of each input, by role.

    Returns:
        A job with the same digest.
    """
    found = {
        role: need if isinstance(need, External) else External(needs[role], need.digest)
        for role, need in job.needs.items()
    }
    return Job(job.stage, job.params, found, job.label, job.local)


def serve(parent: int) -> None:
    """Execute the tasks that arrive on the standard input.

    Args:
        parent: Number of the process that started this one. When it is gone, this process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the run, which then stops this process
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for a result
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    store: Store | None = None
    while True:
        try:
            task: HelperTask = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            store = store or Store(task.store)
            result = _execute(store, task, results)
        except UserError as e:
            result = HelperResult(None, e)
        _send(results, result)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _execute(store: Store, task: HelperTask, results: IO[bytes]) -> HelperResult:
    import torch

    from wpn_bench.jobs.executor import claim_and_execute

    torch.set_num_threads(task.threads)
    job = task.job

    def items(total: int | None, unit: str = "") -> Advance:
        _send(results, ("items", total, unit))
        waiting, last = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal waiting, last
            waiting += n
            if time.monotonic() - last > PROGRESS_SECONDS:
                _send(results, ("done", waiting))
                waiting, last = 0, time.monotonic()

        return advance

    outcome = claim_and_execute(store, job, {}, lambda: _send(results, ("started",)), items)
    if outcome is None:
        return HelperResult(None)
    fields = {name: value for name, value in vars(outcome).items() if name != "job"}
    return HelperResult({**fields, "peak_mb": peak_memory_mb()})


def _send(pipe: IO[bytes], message: Any) -> None:
    pickle.dump(message, pipe)
    pipe.flush()
