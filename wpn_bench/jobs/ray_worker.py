"""The code that runs within a Ray worker. It executes one job, or one shard of its items, and reports the progress."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wpn_bench.core.progress import Advance, peak_memory_mb
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import execute_job, need_paths, outcome_without_work
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.journal import Shard
from wpn_bench.jobs.stages import stage_names
from wpn_bench.jobs.store import Store, read_manifest

POLL_SECONDS = 0.3  # time between two progress updates
PROBE_SECONDS = 5.0  # a node that does not see the store after this time does not share it
ARRIVAL_SECONDS = 60.0  # longest delay until a file is visible on another node of a network file system

# The newest progress of a job: ((number of its task, count of `items` calls), total, unit, number of finished items).
Progress = tuple[tuple[int, int], int | None, str, int]


@dataclass(frozen=True)
class RunEnvironment:
    """What a worker needs to work like the process that started the run.

    Attributes:
        store: Folder of the store, which has the same path on all nodes.
        probe: Name of a temporary file in the store. A node that sees this file shares the store.
        folder: Working directory, for relative paths.
        variables: Environment variables to set.
    """

    store: Path
    probe: str
    folder: Path
    variables: Mapping[str, str]

    def enter(self, libraries: Mapping[str, str]) -> Store:
        """Prepare this process for the jobs of the run, and return the store. `libraries` are the required versions.

        Raises `UserError` if the node does not see the store, or has another version of a library.
        """
        os.environ.update(self.variables)
        with suppress(OSError):
            os.chdir(self.folder)
        node = socket.gethostname()
        for name, required in libraries.items():
            if (installed := _version(name)) != required:
                raise UserError(
                    f"the node {node} has {name} {installed}, but this run started with {required}",
                    "install the same versions on every node (constraints.txt)",
                )
        if not _wait_until((self.store / "tmp" / self.probe).is_file, self.store / "tmp", PROBE_SECONDS):
            raise UserError(
                f"the node {node} does not see the store {self.store}",
                "use --store DIR with a folder that all nodes share under the same path",
            )
        return _store(self.store)


@dataclass(frozen=True)
class WorkerTask:
    """A job, or one shard of it, as it is sent to a worker.

    Attributes:
        environment: What the worker needs to work like the driver.
        number: Number of the task within the run.
        job: The job. All its needs are `External`.
        inputs: The inputs of its digest, computed by the driver.
        threads: Number of PyTorch threads.
        shard: The part of the items to process; None for the whole job.
    """

    environment: RunEnvironment
    number: int
    job: Job
    inputs: Mapping[str, Any]
    threads: int
    shard: Shard | None = None


@dataclass(frozen=True)
class TaskResult:
    """How a task ended: the fields of an `Outcome` without its job."""

    status: str
    seconds: float
    path: Path | None
    reason: str | None
    peak_mb: float
    crash: Path | None = None


def run_task(task: WorkerTask, progress_actor: Any) -> TaskResult | None:
    """Execute a task in this process.

    Args:
        task: The task.
        progress_actor: Handle of a `ProgressActor`; None if no progress is displayed.

    Returns:
        The result; None if another process is executing the job.

    Raises:
        UserError: An input is invalid, or the installation differs from the driver's.
    """
    # The copy has no cached digest. So its inputs are computed from the libraries installed on this node.
    job = replace(task.job)
    store = task.environment.enter(task.inputs["libraries"])
    if job.stage not in stage_names() or job.inputs != task.inputs:
        raise UserError(
            f"the node {socket.gethostname()} has another version of wpn-bench than this run started with",
            "install the same version on every node",
        )
    import torch

    torch.set_num_threads(task.threads)
    for need in job.needs.values():
        assert isinstance(need, External)
        wait_for_artifact(store, need.path)
    progress = _ProgressSender(progress_actor, task).items
    with store.claim(job.stage, job.digest if task.shard is None else _lock_name(job, task.shard)) as acquired:
        if not acquired:
            return None
        outcome = outcome_without_work(store, job, {}) or execute_job(
            store, job, need_paths(job, {}), progress, task.shard
        )
    return TaskResult(outcome.status, outcome.seconds, outcome.path, outcome.reason, peak_memory_mb(), outcome.crash)


def _lock_name(job: Job, shard: Shard) -> str:
    return f"{job.digest}-{shard.index}-of-{shard.count}"


def check_node(environment: RunEnvironment, libraries: Mapping[str, str]) -> None:
    """Check that this node can execute the run's jobs.

    Args:
        environment: What a worker needs to work like the driver.
        libraries: Required version of each library.

    Raises:
        UserError: The node does not see the store, or has another version of a library.
    """
    environment.enter(libraries)


@cache
def _store(root: Path) -> Store:
    return Store(root)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def wait_for_artifact(store: Store, path: Path) -> None:
    """Wait until an artifact that another node wrote is visible on this node.

    Args:
        store: The store.
        path: Folder of the artifact. There is no wait for a folder outside the store.

    Raises:
        UserError: The artifact is still not visible after `ARRIVAL_SECONDS`.
    """
    if path.parent.parent != store.root:
        return
    if not _wait_until(lambda: read_manifest(path) is not None, path.parent, ARRIVAL_SECONDS):
        raise UserError(
            f"the node {socket.gethostname()} does not see what another node wrote to the store {store.root}",
            "mount the store so that all nodes see the same files (docs/cluster.md)",
        )


def _wait_until(condition: Callable[[], bool], folder: Path, seconds: float) -> bool:
    """Return whether a condition on files in `folder` becomes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
        with suppress(OSError):
            os.listdir(folder)  # makes a network file system forget that the file was missing
    return True


class _ProgressSender:
    """Sends the progress of a task to the progress actor, at most every `POLL_SECONDS`."""

    def __init__(self, actor: Any, task: WorkerTask) -> None:
        self._actor, self._digest, self._number, self._calls = actor, task.job.digest, task.number, 0
        self._send(None, "", 0)

    def items(self, total: int | None, unit: str = "") -> Advance:
        self._calls += 1
        self._send(total, unit, 0)
        done, last_sent = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal done, last_sent
            done += n
            if done == total or time.monotonic() - last_sent > POLL_SECONDS:
                last_sent = time.monotonic()
                self._send(total, unit, done)

        return advance

    def _send(self, total: int | None, unit: str, done: int) -> None:
        if self._actor is not None:
            self._actor.update.remote(self._digest, ((self._number, self._calls), total, unit, done))


class ProgressActor:
    """A Ray actor that holds the newest progress of each running job, by digest."""

    def __init__(self) -> None:
        self._updates: dict[str, Progress] = {}

    def update(self, digest: str, progress: Progress) -> None:
        """Store the newest progress of a job.

        Args:
            digest: Digest of the job.
            progress: Its progress.
        """
        self._updates[digest] = progress

    def read(self) -> dict[str, Progress]:
        """Return the progress of each job that changed since the last call, by digest."""
        updates, self._updates = self._updates, {}
        return updates
