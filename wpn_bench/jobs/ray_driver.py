"""Execute jobs in parallel with Ray (Moritz et al. 2018), on this machine or on a cluster.

All nodes share the store. When the inputs of a job are in the store, the job is sent to a worker, which returns how the
job ended. Artifacts, journals and locks work as in a single process. So if a worker is lost, only its work since the
last item or checkpoint is lost, and another worker continues.

If workers would be idle, a job is split into shards of its items. Each shard writes to the job's journal. Afterwards
one worker executes the whole job, like a job that was interrupted and restarted. So a lost shard is not an error.

Retries are made here and not by Ray, which retries out-of-memory errors forever and without a message.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wpn_bench.core.model_files import model_signature
from wpn_bench.core.progress import Advance, Reporter
from wpn_bench.errors import UserError, text_of
from wpn_bench.jobs.executor import Fleet, check_unchanged, need_paths, outcome_without_work, report_crash
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.journal import Shard
from wpn_bench.jobs.ray_cluster import connected, run_environment
from wpn_bench.jobs.ray_worker import (
    POLL_SECONDS,
    ProgressActor,
    RunEnvironment,
    TaskResult,
    WorkerTask,
    check_node,
    run_task,
    wait_for_artifact,
)
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import Store
from wpn_bench.jobs.time_left import TimeLeft
from wpn_bench.redact import redact

RETRIES = 3  # number of times that a task is sent again after its worker was lost
BUSY_SECONDS = 2.0  # time until a job that another run is executing is tried again
MIN_SHARD_ITEMS = 64  # with fewer items, loading the model costs more than the shard saves


@contextmanager
def ray_executor(fleet: Fleet, store: Store, reporter: Reporter) -> Iterator[RayExecutor]:
    """Create an executor on an existing cluster, or on a new one on this machine.

    Args:
        fleet: The user's settings. If they contain no address, RAY_ADDRESS is used.
        store: The artifact store.
        reporter: Shows the progress.

    Yields:
        The executor. A new cluster is stopped at the end of the `with` block.
    """
    address = fleet.ray_address or os.environ.get("RAY_ADDRESS")
    with connected(fleet, address, reporter) as cpus, run_environment(store) as environment:
        yield RayExecutor(fleet, store, reporter, environment, cpus, is_local=address is None)


class RayExecutor:
    """Sends each job to a worker when all its inputs are available.

    Args:
        fleet: The user's settings.
        store: The artifact store.
        reporter: Shows the progress.
        environment: What workers need to work like this process.
        cpus: Number of CPUs of each job.
        is_local: Whether all workers are on this machine.
    """

    def __init__(
        self,
        fleet: Fleet,
        store: Store,
        reporter: Reporter,
        environment: RunEnvironment,
        cpus: int,
        *,
        is_local: bool = True,
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.fleet, self.store, self.reporter = fleet, store, reporter
        self.environment, self.cpus, self.is_local = environment, cpus, is_local
        self.time_left = TimeLeft(store)
        reporter.expect(self.time_left.seconds)
        # These are created only once, because Ray keeps the order of calls only within one remote function.
        self._run_task, self._check_node = ray.remote(run_task), ray.remote(check_node)
        self.progress_actor = None
        if reporter.shows_items:
            this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"num_cpus": 0, "scheduling_strategy": this_node}
            self.progress_actor = ray.remote(ProgressActor).options(**options).remote()
        self._checked: set[tuple[str, str]] = set()  # (node, libraries)
        self._copied: dict[str, External] = {}  # by digest

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        """Execute jobs (see `Executor.run`).

        Args:
            jobs: The jobs. Each comes after those whose output it needs.
            announce: Whether to add their number to the progress display.

        Returns:
            The outcome of each job by its digest, in the order of the jobs.

        Raises:
            UserError: An input is invalid, or a node cannot execute the jobs.
        """
        schedule = _Schedule(self, jobs)
        if announce:
            self.reporter.plan(len(schedule.pending))
        libraries = {name: v for one in schedule.pending.values() for name, v in _libraries(one.job).items()}
        self._check_nodes(libraries)
        return schedule.run()

    def _check_nodes(self, libraries: Mapping[str, str]) -> None:
        """Raise `UserError` if a node cannot execute the jobs, before any job starts."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        key = repr(sorted(libraries.items()))
        nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
        checks = {}
        for node in nodes:
            if (node, key) not in self._checked:
                on_node = NodeAffinitySchedulingStrategy(node, soft=False)
                task = self._check_node.options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
                checks[task.remote(self.environment, libraries)] = node
        for ref, node in checks.items():
            with suppress(_WorkerLost):  # a node that has left the cluster gets no jobs
                _get_result(ref)
            self._checked.add((node, key))

    def capacity(self, job: Job) -> int:
        """Return how many jobs with the resources of this one the cluster can run at the same time."""
        import ray

        resources = ray.cluster_resources()
        cpu_slots = int(resources.get("CPU", 0) // self.cpus)
        if not _on_cuda(job):
            return cpu_slots
        gpu_slots = int(resources.get("GPU", 0) / self.fleet.gpus_per_job)
        if not gpu_slots:
            raise UserError(
                f"a job needs {self.fleet.gpus_per_job:g} GPUs, but the cluster has {resources.get('GPU', 0):g}",
                "start Ray on nodes where it finds GPUs, or use --device cpu or a smaller --gpus-per-job",
            )
        return min(cpu_slots, gpu_slots)

    def submit(self, task: WorkerTask) -> Any:
        """Send a task to a worker and return Ray's reference to its result."""
        gpus = self.fleet.gpus_per_job if _on_cuda(task.job) else 0
        remote = self._run_task.options(num_cpus=self.cpus, num_gpus=gpus, max_retries=0, name=task.job.stage)
        return remote.remote(task, self.progress_actor)

    def accessible(self, need: External) -> External:
        """Return the input with a path that all nodes can read.

        An input outside the store, such as a base model in the hub's cache, is copied into the store once.
        """
        if need.path.is_relative_to(self.store.root):
            return replace(need, path=self.environment.store / need.path.relative_to(self.store.root))
        if self.is_local:
            return replace(need, path=need.path.resolve())
        if need.digest not in self._copied:
            self._copied[need.digest] = copy_to_store(self.store, need)
        return self._copied[need.digest]


def copy_to_store(store: Store, need: External) -> External:
    """Copy an input to `<store>/models/<digest>/files`, as hard links if possible.

    Nodes then need no hub, token or cache for this input, and all of them use the same files.

    Args:
        store: The store.
        need: The input, a folder of files.

    Returns:
        The input with the path of the copy.

    Raises:
        UserError: The files have changed since their digest was computed.
    """
    artifact = store.find("models", need.digest)
    if artifact is None:
        with store.build("models", need.digest, {"digest": need.digest}) as out:
            # The copy is in a subfolder. Otherwise jobs would take it for an artifact of the store.
            (out / "files").mkdir()
            for file in sorted(need.path.iterdir()):
                if file.is_file():
                    _link_or_copy(file.resolve(), out / "files" / file.name)
            check_unchanged(need)
        artifact = store.path("models", need.digest)
    files = artifact.resolve() / "files"
    return External(files, need.digest, None if need.seen is None else model_signature(files))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the store is on another disk
        shutil.copy2(source, target)


def _libraries(job: Job) -> dict[str, str]:
    libraries: dict[str, str] = job.inputs["libraries"]
    return libraries


def _on_cuda(job: Job) -> bool:
    return str(job.local.get("device", "")).startswith("cuda")


class _WorkerLost(Exception):
    """A worker died because it was killed, its node left the cluster, or memory ran out."""


def _get_result(ref: Any) -> Any:
    """Return the result of a Ray task.

    Raises the exception of the task (a `UserError` as it was), or `_WorkerLost`.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as e:
        raise (e.cause if isinstance(e.cause, UserError) else e) from None
    except RayError as e:
        raise _WorkerLost("out of memory" if isinstance(e, OutOfMemoryError) else "killed, or out of memory") from e


@dataclass(eq=False)
class _PendingJob:
    """A job that has not ended.

    Attributes:
        submitted: Whether the job or its shards were sent to workers.
        shards: Number of unfinished shards.
        needs: Inputs of the job, with paths that all nodes can read.
        started: Whether the progress display has shown its start.
        counter: Identifies the call of `items` that `done` belongs to.
        done: Number of finished items that the progress display has shown.
        advance: Tells the progress display about further finished items.
    """

    job: Job
    submitted: bool = False
    shards: int = 0
    needs: Mapping[str, External] = field(default_factory=dict)
    started: bool = False
    counter: tuple[int, int] | None = None
    done: int = 0
    advance: Advance = lambda n: None


@dataclass(eq=False)
class _Task:
    """A pending job or one of its shards, with the number of workers that died while they executed it."""

    pending: _PendingJob
    shard: Shard | None = None
    losses: int = 0


class _Schedule:
    """The state of one call of `RayExecutor.run`."""

    def __init__(self, executor: RayExecutor, jobs: Iterable[Job]) -> None:
        self.executor, self.reporter, self.store = executor, executor.reporter, executor.store
        self.pending = {job.digest: _PendingJob(job) for job in jobs}
        self.time_left = executor.time_left
        if self.reporter.shows_items:
            self.time_left.add(p.job for p in self.pending.values())
        self.outcomes: dict[str, Outcome] = {}
        self.running: dict[Any, _Task] = {}  # by Ray's reference to the result
        self.delayed: list[tuple[float, _Task]] = []  # (time to submit it, task)
        self.progress_ref: Any = None
        self.task_count = 0
        self.reported_waiting = False

    def run(self) -> dict[str, Outcome]:
        """Run all jobs and return their outcomes in the order of the jobs."""
        import ray

        digests = list(self.pending)
        try:
            while self.pending:
                self._submit_ready(self._ready())
                if self.running:
                    finished, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
                    for ref in finished:
                        self._finish_task(self.running.pop(ref), ref)
                elif self.pending:
                    time.sleep(POLL_SECONDS)
                self._show_progress()
        finally:
            for ref in self.running:
                with suppress(Exception):  # the cluster may no longer exist
                    ray.cancel(ref, force=True)
        return {digest: self.outcomes[digest] for digest in digests}

    def _ready(self) -> list[_PendingJob]:
        """Return the jobs whose inputs are available. Jobs that need no execution (cached, skipped) end here."""
        ready = []
        for pending in list(self.pending.values()):
            if pending.submitted or any(need.digest in self.pending for need in pending.job.needs.values()):
                continue
            outcome = outcome_without_work(self.store, pending.job, self.outcomes)
            if outcome is None:
                ready.append(pending)
            else:
                self._end(pending, outcome)
        return ready

    def _submit_ready(self, ready: list[_PendingJob]) -> None:
        now = time.monotonic()
        due = [task for when, task in self.delayed if when <= now]
        self.delayed = [(when, task) for when, task in self.delayed if when > now]
        for task in due:
            self._submit(task)
        for pending in ready:
            paths = need_paths(pending.job, self.outcomes)
            pending.needs = {
                role: self.executor.accessible(
                    need if isinstance(need, External) else External(paths[role], need.digest)
                )
                for role, need in pending.job.needs.items()
            }
        for jobs_left, pending in zip(range(len(ready), 0, -1), ready, strict=True):
            pending.submitted = True
            idle = self.executor.capacity(pending.job) - len(self.running) - len(self.delayed)
            shards = shard_count(pending.job, pending.needs, idle // jobs_left, self.executor.fleet.shards)
            if shards == 1:
                self._submit(_Task(pending))
                continue
            pending.shards = shards
            self._report_start(pending)
            pending.advance = self.reporter.items(shards, "shards", pending.job.label)
            for index in range(shards):
                self._submit(_Task(pending, Shard(index, shards)))

    def _submit(self, task: _Task) -> None:
        pending = task.pending
        self.task_count += 1
        # Ray shows each worker only its own GPUs, so the index of a GPU has no meaning in the worker.
        local = {**pending.job.local, "device": "cuda"} if _on_cuda(pending.job) else pending.job.local
        job = replace(pending.job, needs=pending.needs, local=local)
        environment, threads = self.executor.environment, self.executor.cpus
        sent = WorkerTask(environment, self.task_count, job, pending.job.inputs, threads, task.shard)
        self.running[self.executor.submit(sent)] = task

    def _finish_task(self, task: _Task, ref: Any) -> None:
        pending = task.pending
        try:
            result: TaskResult | None = _get_result(ref)
        except _WorkerLost as e:
            self._retry(task, str(e))
            return
        except UserError:
            raise
        except Exception as e:  # Ray raised it outside the job, for example while reading the arguments
            if task.shard is not None:
                self._finish_shard(pending)
            else:
                reason = redact(text_of(e))[-500:] or type(e).__name__
                self._end(pending, Outcome(pending.job, "failed", 0.0, None, reason))
            return
        if result is None:
            if not self.reported_waiting:
                self.reporter.note(f"waiting: another run with this store is executing {pending.job.label}")
                self.reported_waiting = True
            self.delayed.append((time.monotonic() + BUSY_SECONDS, task))
        elif task.shard is not None:
            self._finish_shard(pending)
        else:
            if result.path is not None:
                path = self.store.path(pending.job.stage, pending.job.digest)
                wait_for_artifact(self.store, path)
                result = replace(result, path=path)
            self._end(
                pending,
                Outcome(
                    pending.job,
                    result.status,
                    result.seconds,
                    result.path,
                    result.reason,
                    result.peak_mb,
                    result.crash,
                ),
            )

    def _finish_shard(self, pending: _PendingJob) -> None:
        pending.shards -= 1
        pending.advance(1)
        if not pending.shards:
            self._submit(_Task(pending))

    def _retry(self, task: _Task, why: str) -> None:
        """Submit a task again whose worker was lost, at most `RETRIES` times."""
        task.losses += 1
        job = task.pending.job
        if task.losses <= RETRIES:
            self.reporter.note(f"lost a worker during {job.label}: another worker continues")
            self.delayed.append((time.monotonic() + task.losses, task))
        elif task.shard is not None:
            self._finish_shard(task.pending)
        else:
            self._end(task.pending, Outcome(job, "failed", 0.0, None, f"lost {task.losses} workers ({why})"))

    # --- progress ---

    def _report_start(self, pending: _PendingJob) -> None:
        if not pending.started:
            pending.started = True
            self.time_left.start(pending.job)
            self.reporter.start(pending.job.label)

    def _end(self, pending: _PendingJob, outcome: Outcome) -> None:
        if outcome.status not in ("cached", "skipped"):
            self._report_start(pending)
        self.time_left.finish(outcome)
        self.outcomes[pending.job.digest] = outcome
        del self.pending[pending.job.digest]
        self.reporter.finish(pending.job.label, outcome.status, outcome.seconds)
        report_crash(self.reporter, outcome)

    def _show_progress(self) -> None:
        actor = self.executor.progress_actor
        if actor is None:
            return
        import ray
        from ray.exceptions import RayError

        self.progress_ref = self.progress_ref or actor.read.remote()
        if not ray.wait([self.progress_ref], timeout=0)[0]:
            return
        try:
            updates = ray.get(self.progress_ref)
        except RayError:  # the actor was killed; the jobs continue without progress bars
            self.executor.progress_actor = None
            return
        self.progress_ref = None
        for digest, (counter, total, unit, done) in updates.items():
            pending = self.pending.get(digest)
            if pending is None or pending.shards:
                continue
            self._report_start(pending)
            if counter != pending.counter:
                pending.counter, pending.done = counter, 0
                pending.advance = self.reporter.items(total, unit, pending.job.label)
            pending.advance(done - pending.done)
            pending.done = done
            self.time_left.progress(digest, done, total)


def shard_count(job: Job, needs: Mapping[str, External], idle: int, requested: int | None) -> int:
    """Return the number of shards into which a job is split.

    Args:
        job: The job.
        needs: Its inputs.
        idle: Number of idle workers that could process shards.
        requested: Number of shards that the user set. None uses the idle workers if the job has enough items.

    Returns:
        The number of shards; 1 executes the job as a whole.
    """
    if not stage_of(job.stage).shardable:
        return 1
    items = count_items(job, needs)
    limit = requested if requested is not None else min(idle, idle if items is None else items // MIN_SHARD_ITEMS)
    return max(1, min(limit, limit if items is None else items))


def count_items(job: Job, needs: Mapping[str, External]) -> int | None:
    """Return an upper bound on the number of items of a job, from its `limit` and the rows of its input files.

    Args:
        job: The job.
        needs: Its inputs.

    Returns:
        The bound; None if it is unknown.
    """
    counts = [job.params["limit"]] if job.params.get("limit") else []
    for need in needs.values():
        for file in need.path.glob("*.jsonl"):
            with file.open("rb") as f:
                counts.append(sum(1 for _ in f))
    return max(counts, default=None)
