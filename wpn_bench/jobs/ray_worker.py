"""What a Ray worker does with one job."""

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
from wpn_bench.jobs.executor import found_needs, perform, settled
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.journal import Shard
from wpn_bench.jobs.stages import STAGES
from wpn_bench.jobs.store import Store, read_manifest

TICK_SECONDS = 0.3  # between two looks at progress
PROBE_SECONDS = 5.0  # that a node may take to see the store
ARRIVAL_SECONDS = 60.0  # that a file system of several machines may take to show what another wrote


@dataclass(frozen=True)
class RunEnvironment:
    """Where a run works: its store with a file in it by which it is known, the folder that relative paths are from, and
    variables of the environment."""

    store: Path
    probe: str
    folder: Path
    variables: Mapping[str, str]

    def enter(self, libraries: Mapping[str, str]) -> Store:
        """Make this process one of the run's. Raises `UserError` where it does not see the store, or has another version
        of one of the `libraries`."""
        os.environ.update(self.variables)
        with suppress(OSError):
            os.chdir(self.folder)
        here = socket.gethostname()
        for name, asked in libraries.items():
            if (found := _version(name)) != asked:
                raise UserError(
                    f"the node {here} has {name} {found}, where this run began with {asked}",
                    "install the same versions on every node (constraints.txt)",
                )
        if not _wait_until(self.store / "tmp", (self.store / "tmp" / self.probe).is_file, PROBE_SECONDS):
            raise UserError(
                f"the node {here} does not see the store {self.store}",
                "name one that all nodes share, under the same path, with --store DIR",
            )
        return _store(self.store)


@dataclass(frozen=True)
class WorkerTask:
    """What a worker is told: a job whose needs are all `External`, what makes up its digest, and how much of the machine
    it may take. `number` tells the orders of a run apart."""

    site: RunEnvironment
    number: int
    job: Job
    inputs: Mapping[str, Any]
    threads: int
    share: Shard | None = None


@dataclass(frozen=True)
class TaskResult:
    """How an order ended: the fields of an `Outcome` but its job."""

    status: str
    seconds: float
    path: Path | None
    reason: str | None
    peak_mb: float


def run_task(order: WorkerTask, board: Any) -> TaskResult | None:
    """Carry out an order; None if another process is at it. `board` (None: nobody looks) is told of the progress."""
    # A copy, so that the digest is made again from what is installed here.
    job = replace(order.job)
    store = order.site.enter(order.inputs["libraries"])
    if job.stage not in STAGES or job.inputs != order.inputs:
        raise UserError(
            f"the node {socket.gethostname()} has another wpn-bench than the one that this run began with",
            "install the same version on every node",
        )
    import torch

    torch.set_num_threads(order.threads)
    for need in job.needs.values():
        assert isinstance(need, External)
        wait_for_artifact(store, need.path)
    progress = _ProgressSender(board, order).items
    with store.claim(job.stage, job.digest if order.share is None else _lock_name(job, order.share)) as free:
        if not free:
            return None
        outcome = settled(store, job, {}) or perform(store, job, found_needs(job, {}), progress, order.share)
    return TaskResult(outcome.status, outcome.seconds, outcome.path, outcome.reason, peak_memory_mb())


def _lock_name(job: Job, share: Shard) -> str:
    return f"{job.digest}-{share.number}-of-{share.of}"


def check_node(site: RunEnvironment, libraries: Mapping[str, str]) -> None:
    """Raise `UserError` if this node cannot do the run's work."""
    site.enter(libraries)


@cache
def _store(root: Path) -> Store:
    return Store(root)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def wait_for_artifact(store: Store, path: Path) -> None:
    """Return once an artifact that another machine wrote is seen here. Raises `UserError` if that takes too long."""
    if path.parent.parent != store.root:
        return
    if not _wait_until(path.parent, lambda: read_manifest(path) is not None, ARRIVAL_SECONDS):
        raise UserError(
            f"the node {socket.gethostname()} does not see what another node put into the store {store.root}",
            "mount it so that all nodes see the same (docs/cluster.md)",
        )


def _wait_until(folder: Path, there: Callable[[], bool], seconds: float) -> bool:
    """Whether it is there, now or within so many seconds."""
    deadline = time.monotonic() + seconds
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(TICK_SECONDS)
        with suppress(OSError):
            os.listdir(folder)  # a network file system looks anew, and forgets that it was not there
    return True


class _ProgressSender:
    """Tells the board of an order's progress, seldom enough to cost nothing."""

    def __init__(self, board: Any, order: WorkerTask) -> None:
        self._board, self._key, self._number, self._calls = board, order.job.digest, order.number, 0
        self._tell(None, "", 0)

    def items(self, total: int | None, unit: str = "") -> Advance:
        self._calls += 1
        self._tell(total, unit, 0)
        done, told = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal done, told
            done += n
            if done == total or time.monotonic() - told > TICK_SECONDS:
                told = time.monotonic()
                self._tell(total, unit, done)

        return advance

    def _tell(self, total: int | None, unit: str, done: int) -> None:
        if self._board is not None:
            self._board.tell.remote(self._key, ((self._number, self._calls), total, unit, done))


class ProgressActor:
    """The newest that each job at work has told of its progress, by digest: which counting it is, total, unit, done."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[tuple[int, int], int | None, str, int]] = {}

    def tell(self, digest: str, said: tuple[tuple[int, int], int | None, str, int]) -> None:
        self._told[digest] = said

    def read(self) -> dict[str, tuple[tuple[int, int], int | None, str, int]]:
        """What was told since it was last read."""
        told, self._told = self._told, {}
        return told
