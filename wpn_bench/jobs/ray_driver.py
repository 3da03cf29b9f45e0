"""Jobs over Ray (Moritz et al. 2018): several at once, on this machine or on all nodes of a cluster.

What goes to a worker is a job whose needs lie in the store, which every node sees; what comes back is how it ended. The
rest is as with one process: artifacts are in the store, items and checkpoints in its scratch folders, and the claim on a
job is with the process that is at it and dies with it. So a lost worker costs what it did since its last item or
checkpoint, and another goes on.

Where workers would have nothing to do, the items of a job are shared out: each share leaves what it finds in the job's
journal, and then one worker does the job like one that was interrupted. A share that is lost is no failure.

Retries are made here, not by Ray: it would go on for ever where memory runs out, and say nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wpn_bench.core import consent
from wpn_bench.core.files import folder_signature
from wpn_bench.core.progress import Advance, Reporter
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Fleet, check_unchanged, found_needs, settled
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.journal import Shard
from wpn_bench.jobs.ray_worker import (
    PROBE_SECONDS,
    TICK_SECONDS,
    ProgressActor,
    RunEnvironment,
    TaskResult,
    WorkerTask,
    check_node,
    run_task,
    wait_for_artifact,
)
from wpn_bench.jobs.stages import STAGES
from wpn_bench.jobs.store import Store

RETRIES = 3  # of a job whose worker was lost
BUSY_SECONDS = 2.0  # between two looks at what another run is at
MIN_SHARD_ITEMS = 64  # items that make a share worth its model's loading
DEFAULT_THREADS = 4  # of a job at most, where nothing else is said
OBJECT_STORE_BYTES = (
    80 * 2**20
)  # bytes of memory for what tasks hand each other: next to nothing, and about Ray's least
_CARRIED = (  # variables of the driver that must be the workers', too
    consent.CODE,
    consent.PICKLES,
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_VERBOSITY",
    "TOKENIZERS_PARALLELISM",
)

_QUIET = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",  # essays on lost workers, on standard output
}


@contextmanager
def ray_executor(fleet: Fleet, store: Store, reporter: Reporter) -> Iterator[RayExecutor]:
    """An executor on the cluster, or on one of this machine's own, which ends with it."""
    address = fleet.ray_address or os.environ.get("RAY_ADDRESS")
    with connected(fleet, address, reporter) as cpus, run_environment(store) as site:
        yield RayExecutor(fleet, store, reporter, site, cpus, own=address is None)


@contextmanager
def connected(fleet: Fleet, address: str | None, reporter: Reporter) -> Iterator[int]:
    """Within it, this process may send tasks; yields the CPUs of a job."""
    cpus = _connect(fleet, address, reporter)
    import ray

    try:
        yield cpus
    finally:
        ray.shutdown()


@contextmanager
def run_environment(store: Store) -> Iterator[RunEnvironment]:
    with tempfile.NamedTemporaryFile(dir=store.root / "tmp", prefix="probe-") as probe:
        variables = {name: os.environ[name] for name in _CARRIED if name in os.environ}
        yield RunEnvironment(store.root.resolve(), Path(probe.name).name, Path.cwd(), variables)


def _connect(fleet: Fleet, address: str | None, reporter: Reporter) -> int:
    if address is not None:
        _check_address(fleet, address)
    os.environ |= _QUIET | os.environ
    if address is None and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Its ports are open to other machines, and whoever may send it tasks is this user. Ray reads it when imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with reporter.activity("start Ray" if address is None else "find the Ray cluster"):
        workers, cpus = _divided(fleet, _cpus_here())
        own = {"num_cpus": workers * cpus, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        try:
            ray.init(address=address or "local", **quiet, **({} if address else own))
        except Exception as e:  # of many kinds: another version of Ray or Python, a token that is wrong, no room
            why = " ".join(str(e).split())[:300]
            if address is not None:
                raise _no_cluster(address, why) from e
            raise UserError(f"Ray cannot be started ({why})", "mend that, or leave --executor ray out") from e
        if address is None:
            return cpus
        most = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        cpus = fleet.cpus_per_job or _threads(most)
        if cpus > most:
            ray.shutdown()
            raise UserError(
                f"a job is to have {cpus} CPUs, and no node of the cluster has more than {most}",
                "start its nodes with more, or give a smaller --cpus-per-job",
            )
        return cpus


def _check_address(fleet: Fleet, address: str) -> None:
    """Raise `UserError` where nobody answers: Ray itself would try for minutes."""
    if fleet.workers is not None:
        raise UserError(
            f"--workers is for a cluster of this machine's own, not for the one at {address}",
            "leave it out, or unset RAY_ADDRESS",
        )
    if "://" in address:
        raise _no_cluster(address, "a client is no part of the cluster")
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
        except (OSError, OverflowError) as e:
            raise _no_cluster(address, str(e)) from e


def _no_cluster(address: str, why: str) -> UserError:
    return UserError(
        f"the Ray cluster at {address} cannot be used ({why})",
        "type the command on a node of a running cluster, with the HOST:PORT that `ray start --head` printed",
    )


def _cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(cpus: int) -> int:
    """CPUs of a job on a machine with so many: as OMP_NUM_THREADS says, else few enough for two jobs."""
    return _asked_threads() or max(1, min(DEFAULT_THREADS, cpus // 2))


def _asked_threads() -> int:
    """OMP_NUM_THREADS; 0 where it says nothing."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else 0


def _divided(fleet: Fleet, cpus: int) -> tuple[int, int]:
    """Workers, and the CPUs of each, on a machine with so many."""
    if fleet.workers is None:
        each = fleet.cpus_per_job or _threads(cpus)
        return max(1, cpus // each), each
    return fleet.workers, fleet.cpus_per_job or _asked_threads() or max(1, cpus // fleet.workers)


class RayExecutor:
    """Sends each job to a worker once what it needs is there. `own`: the workers are on this machine."""

    def __init__(
        self, fleet: Fleet, store: Store, reporter: Reporter, site: RunEnvironment, cpus: int, *, own: bool = True
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.fleet, self.store, self.reporter, self.site, self.cpus, self.own = fleet, store, reporter, site, cpus, own
        # One function each, sent to the workers once: Ray begins its calls in their order.
        self._work, self._look = ray.remote(run_task), ray.remote(check_node)
        self.board = None
        if reporter.shows_items:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self.board = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=here).remote()
        self._seen: set[tuple[str, str]] = set()  # nodes, and the libraries that they were found to have
        self._lodged: dict[str, External] = {}

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        run = _Run(self, jobs)
        if announce:
            self.reporter.plan(len(run.left))
        self._look_at_nodes({name: v for turn in run.left.values() for name, v in _libraries(turn.job).items()})
        return run.outcome()

    def _look_at_nodes(self, libraries: Mapping[str, str]) -> None:
        """Raise `UserError` if a node cannot do the work, before any of it is done."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = repr(sorted(libraries.items()))
        nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        looks = {}
        for node in nodes:
            if (node, asked) not in self._seen:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                task = self._look.options(num_cpus=0, max_retries=0, scheduling_strategy=there)
                looks[task.remote(self.site, libraries)] = node
        for ref, node in looks.items():
            with suppress(_Lost):  # a node that went away does no work
                _answer(ref)
            self._seen.add((node, asked))

    def room(self, job: Job) -> int:
        """How many such jobs the cluster can be at."""
        import ray

        has = ray.cluster_resources()
        cpus = int(has.get("CPU", 0) // self.cpus)
        if not _on_cuda(job):
            return cpus
        gpus = int(has.get("GPU", 0) / self.fleet.gpus_per_job)
        if not gpus:
            raise UserError(
                f"a job is to have {self.fleet.gpus_per_job:g} GPUs, and the cluster has {has.get('GPU', 0):g}",
                "start Ray where it sees them, or give --device cpu or a smaller --gpus-per-job",
            )
        return min(cpus, gpus)

    def send(self, order: WorkerTask) -> Any:
        """What stands for the answer of whoever carries the order out."""
        gpus = self.fleet.gpus_per_job if _on_cuda(order.job) else 0
        task = self._work.options(num_cpus=self.cpus, num_gpus=gpus, max_retries=0, name=order.job.stage)
        return task.remote(order, self.board)

    def within_reach(self, need: External) -> External:
        """The same, where every node finds it: what lies outside the store (the base model in a cache of the hub) is put into
        it once."""
        if need.path.is_relative_to(self.store.root):
            return replace(need, path=self.site.store / need.path.relative_to(self.store.root))
        if self.own:
            return replace(need, path=need.path.resolve())
        if need.digest not in self._lodged:
            self._lodged[need.digest] = copy_to_store(self.store, need)
        return self._lodged[need.digest]


def copy_to_store(store: Store, need: External) -> External:
    """`need` in `<store>/models/<digest>/files`: hard links where that can be, else copies. Nodes need no hub, no token and
    no cache for it, and cannot have another model under its name."""
    found = store.find("models", need.digest)
    if found is None:
        with store.build("models", need.digest, {"digest": need.digest}) as out:
            # In a folder of its own, so that it is known by its digest as it would be elsewhere, and not as an artifact.
            (out / "files").mkdir()
            for file in sorted(need.path.iterdir()):
                if file.is_file():
                    _put(file.resolve(), out / "files" / file.name)
            check_unchanged(need)
        found = store.path("models", need.digest)
    files = found.resolve() / "files"
    return External(files, need.digest, None if need.seen is None else folder_signature(files))


def _put(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:  # another disk
        shutil.copy2(file, place)


def _libraries(job: Job) -> dict[str, str]:
    libraries: dict[str, str] = job.inputs["libraries"]
    return libraries


def _on_cuda(job: Job) -> bool:
    return str(job.local.get("device", "")).startswith("cuda")


class _Lost(Exception):
    """A worker is no more: it was killed, its node went away, or memory ran out."""


def _answer(ref: Any) -> Any:
    """What a task returned. Raises what it raised, a `UserError` as such, and `_Lost`."""
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as e:
        raise (e.cause if isinstance(e.cause, UserError) else e) from None
    except RayError as e:
        raise _Lost("memory ran out" if isinstance(e, OutOfMemoryError) else "killed, or short of memory") from e


@dataclass(eq=False)
class _Turn:
    """A job that has not ended: how many shares are at work, how far its bar is."""

    job: Job
    sent: bool = False
    shares: int = 0
    needs: Mapping[str, External] = field(default_factory=dict)
    begun: bool = False
    counting: tuple[int, int] | None = None
    done: int = 0
    advance: Advance = lambda n: None


@dataclass(eq=False)
class _Task:
    """A turn's job or a share of it, and how often its worker was lost."""

    turn: _Turn
    share: Shard | None = None
    lost: int = 0


class _Run:
    def __init__(self, executor: RayExecutor, jobs: Iterable[Job]) -> None:
        self.executor, self.reporter, self.store = executor, executor.reporter, executor.store
        self.left = {job.digest: _Turn(job) for job in jobs}
        self.outcomes: dict[str, Outcome] = {}
        self.flight: dict[Any, _Task] = {}
        self.later: list[tuple[float, _Task]] = []
        self.reading: Any = None
        self.orders = 0
        self.told = False

    def outcome(self) -> dict[str, Outcome]:
        """Outcomes in the order of the jobs."""
        import ray

        order = list(self.left)
        try:
            while self.left:
                self._send(self._ready())
                if self.flight:
                    ended, _ = ray.wait(list(self.flight), timeout=TICK_SECONDS)
                    for ref in ended:
                        self._ended(self.flight.pop(ref), ref)
                elif self.left:
                    time.sleep(TICK_SECONDS)
                self._show()
        finally:
            for ref in self.flight:
                with suppress(Exception):  # the cluster may be gone, too
                    ray.cancel(ref, force=True)
        return {digest: self.outcomes[digest] for digest in order}

    def _ready(self) -> list[_Turn]:
        """Those that wait for nothing; what needs no work ends here."""
        ready = []
        for turn in list(self.left.values()):
            if turn.sent or any(need.digest in self.left for need in turn.job.needs.values()):
                continue
            outcome = settled(self.store, turn.job, self.outcomes)
            if outcome is None:
                ready.append(turn)
            else:
                self._end(turn, outcome)
        return ready

    def _send(self, ready: list[_Turn]) -> None:
        now = time.monotonic()
        due = [task for when, task in self.later if when <= now]
        self.later = [(when, task) for when, task in self.later if when > now]
        for task in due:
            self._order(task)
        for turn in ready:
            reach = self.executor.within_reach
            found = found_needs(turn.job, self.outcomes)
            turn.needs = {
                role: reach(need if isinstance(need, External) else External(found[role], need.digest))
                for role, need in turn.job.needs.items()
            }
        for left, turn in zip(range(len(ready), 0, -1), ready, strict=True):
            turn.sent = True
            idle = self.executor.room(turn.job) - len(self.flight) - len(self.later)
            parts = shard_count(turn.job, turn.needs, idle // left, self.executor.fleet.shards)
            if parts == 1:
                self._order(_Task(turn))
                continue
            turn.shares = parts
            self._begin(turn)
            turn.advance = self.reporter.items(parts, "shares", turn.job.label)
            for number in range(parts):
                self._order(_Task(turn, Shard(number, parts)))

    def _order(self, task: _Task) -> None:
        turn = task.turn
        self.orders += 1
        local = {**turn.job.local, "device": "cuda"} if _on_cuda(turn.job) else turn.job.local
        job = replace(turn.job, needs=turn.needs, local=local)  # of several GPUs a worker sees its own
        threads, site = self.executor.cpus, self.executor.site
        order = WorkerTask(site, self.orders, job, turn.job.inputs, threads, task.share)
        self.flight[self.executor.send(order)] = task

    def _ended(self, task: _Task, ref: Any) -> None:
        turn = task.turn
        try:
            said: TaskResult | None = _answer(ref)
        except _Lost as e:
            self._lost(task, str(e))
            return
        if said is None:
            if not self.told:
                self.reporter.note(f"waiting: another run on this store is at {turn.job.label}")
                self.told = True
            self.later.append((time.monotonic() + BUSY_SECONDS, task))
        elif task.share is not None:
            self._share_ended(turn)
        else:
            if said.path is not None:
                wait_for_artifact(self.store, self.store.path(turn.job.stage, turn.job.digest))
                said = replace(said, path=self.store.path(turn.job.stage, turn.job.digest))
            self._end(turn, Outcome(turn.job, said.status, said.seconds, said.path, said.reason, said.peak_mb))

    def _share_ended(self, turn: _Turn) -> None:
        turn.shares -= 1
        turn.advance(1)
        if not turn.shares:
            self._order(_Task(turn))

    def _lost(self, task: _Task, why: str) -> None:
        """Try again, for a while."""
        task.lost += 1
        label = task.turn.job.label
        if task.lost <= RETRIES:
            self.reporter.note(f"lost a worker that was at {label}: another goes on with it")
            self.later.append((time.monotonic() + task.lost, task))
        elif task.share is not None:
            self._share_ended(task.turn)
        else:
            self._end(task.turn, Outcome(task.turn.job, "failed", 0.0, None, f"lost {task.lost} workers ({why})"))

    # --- what people see ---

    def _begin(self, turn: _Turn) -> None:
        if not turn.begun:
            turn.begun = True
            self.reporter.start(turn.job.label)

    def _end(self, turn: _Turn, outcome: Outcome) -> None:
        self._begin(turn)
        self.outcomes[turn.job.digest] = outcome
        del self.left[turn.job.digest]
        self.reporter.finish(turn.job.label, outcome.status, outcome.seconds)

    def _show(self) -> None:
        board = self.executor.board
        if board is None:
            return
        import ray
        from ray.exceptions import RayError

        self.reading = self.reading or board.read.remote()
        if not ray.wait([self.reading], timeout=0)[0]:
            return
        try:
            told = ray.get(self.reading)
        except RayError:  # it was killed; the work goes on unseen
            self.executor.board = None
            return
        self.reading = None
        for digest, (counting, total, unit, done) in told.items():
            turn = self.left.get(digest)
            if turn is None or turn.shares:
                continue
            self._begin(turn)
            if counting != turn.counting:
                turn.counting, turn.done = counting, 0
                turn.advance = self.reporter.items(total, unit, turn.job.label)
            turn.advance(done - turn.done)
            turn.done = done


def shard_count(job: Job, needs: Mapping[str, External], idle: int, asked: int | None) -> int:
    """Into how many shares a job is cut: as many as `asked` for, else as there are idle workers for it, if its items are
    many enough."""
    if not STAGES[job.stage].shared:
        return 1
    items = count_items(job, needs)
    most = asked if asked is not None else min(idle, idle if items is None else items // MIN_SHARD_ITEMS)
    return max(1, min(most, most if items is None else items))


def count_items(job: Job, needs: Mapping[str, External]) -> int | None:
    """How many items a job has at most, as far as that can be told from outside (None: it cannot)."""
    known = [job.params["limit"]] if job.params.get("limit") else []
    for need in needs.values():
        for file in need.path.glob("*.jsonl"):
            with file.open("rb") as f:
                known.append(sum(1 for _ in f))
    return max(known, default=None)
