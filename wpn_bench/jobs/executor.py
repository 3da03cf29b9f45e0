"""Execute the jobs of a run.

The digest of a job covers everything that determines its output, and it is known before the job runs. So the whole plan
of a run is known before its first job starts. Jobs whose artifacts are in the store are not executed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

from safetensors import SafetensorError

from wpn_bench.core.crash import crash_text
from wpn_bench.core.files import disk_error_text
from wpn_bench.core.model_files import model_signature
from wpn_bench.core.option import EXECUTION, Option
from wpn_bench.core.progress import Advance, Reporter, Stopwatch
from wpn_bench.core.registry import import_attribute
from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import JobFailed, UserError, WpnBenchError, text_of
from wpn_bench.jobs.job import External, Job, Outcome, StageContext
from wpn_bench.jobs.journal import Journal, Shard, use_journal
from wpn_bench.jobs.rates import machine_name
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import Store, read_manifest
from wpn_bench.jobs.time_left import TimeLeft
from wpn_bench.redact import redact

WAIT_SECONDS = 0.3  # time between two checks whether another run has finished a job


class Executor(Protocol):
    """Executes jobs. If a job fails, the jobs that need its output are skipped and all others continue."""

    store: Store
    reporter: Reporter

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        """Execute jobs.

        Args:
            jobs: The jobs. Each comes after those whose output it needs.
            announce: Whether to add their number to the progress display; False if the caller has done so.

        Returns:
            The outcome of each job, by its digest.
        """


@dataclass(frozen=True)
class Fleet:
    """The settings that choose the executor and its resources. They change no results and are not part of any digest.

    Attributes:
        executor: `local` or `ray`. The other settings except `workers` are for `ray`.
        ray_address: Address of a cluster. None uses RAY_ADDRESS, or starts a new cluster on this machine.
        workers: Number of concurrent jobs on this machine. None: with `local` one, and for the lab's small model up to
            four (`processes.processes_for_small_models`); with `ray` as many as there are CPUs for.
        cpus_per_job: Number of CPUs of a job.
        gpus_per_job: Number of GPUs of a job on CUDA. With a fraction, several jobs share one GPU.
        shards: Number of shards that a job is split into; None splits it between idle workers.
    """

    executor: Annotated[
        str,
        Option(
            help="local (this machine, the default) or ray (several at once, on this machine or a cluster).",
            panel=EXECUTION,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        Option(
            help="HOST:PORT of a Ray cluster whose nodes share the store, or auto to find it. Default: RAY_ADDRESS, or a new "
            "cluster on this machine.",
            panel=EXECUTION,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(
            type=int,
            help="Number of jobs that run at once on this machine (default: 1; for the lab's small model its threads, up to 4; "
            "with ray its CPUs / --cpus-per-job).",
            panel=EXECUTION,
        ),
    ] = None
    cpus_per_job: Annotated[
        int | None,
        Option(type=int, help="CPU threads of each job (default: OMP_NUM_THREADS, or up to 4).", panel=EXECUTION),
    ] = None
    gpus_per_job: Annotated[
        float,
        Option(
            type=float,
            help="GPUs of each job on CUDA (1). With 0.5, two jobs share one GPU; both must fit.",
            panel=EXECUTION,
        ),
    ] = 1.0
    shards: Annotated[
        int | None,
        Option(
            type=int,
            help="Number of parts into which the prompts and requests of a job are split (default: the number of idle "
            "workers; 1: do not split).",
            panel=EXECUTION,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"unknown executor {self.executor!r}", f"choose from {', '.join(EXECUTORS)}")
        both = ("executor", "workers")
        changed = [f.name for f in fields(self) if f.name not in both and getattr(self, f.name) != f.default]
        if changed and self.executor == "local":
            option = "--" + changed[0].replace("_", "-")
            raise UserError(f"{option} needs the executor ray", f"add --executor ray, or leave out {option}")
        if not (0 < self.gpus_per_job <= 1 or (self.gpus_per_job > 1 and self.gpus_per_job.is_integer())):
            raise UserError(
                f"--gpus-per-job {self.gpus_per_job:g} is invalid", "give a whole number, or a fraction below 1"
            )
        _, package = EXECUTORS[self.executor]
        if find_spec(package) is None:
            raise UserError(
                f"--executor {self.executor} needs {package}, which is not installed",
                f"pip install 'wpn-bench[{self.executor}]'",
            )

    def open_executor(self, store: Store, reporter: Reporter) -> AbstractContextManager[Executor]:
        """Create the executor that the settings choose.

        Args:
            store: The artifact store.
            reporter: Shows the progress.

        Returns:
            A context manager that yields the executor.
        """
        opened: AbstractContextManager[Executor] = import_attribute(EXECUTORS[self.executor][0])(self, store, reporter)
        return opened


# Maps the name of each executor to the function that creates it and the package that it needs.
EXECUTORS = {
    "local": ("wpn_bench.jobs.executor:local_executor", "wpn_bench"),
    "ray": ("wpn_bench.jobs.ray_driver:ray_executor", "ray"),
}


@contextmanager
def local_executor(fleet: Fleet, store: Store, reporter: Reporter) -> Iterator[Executor]:
    """Create an executor that runs jobs on this machine, in `fleet.workers` processes.

    Args:
        fleet: The settings.
        store: The artifact store.
        reporter: Shows the progress.

    Yields:
        The executor. Its processes end with the `with` block.
    """
    from wpn_bench.jobs.processes import ProcessExecutor

    executor = ProcessExecutor(store, reporter, fleet.workers or 1)
    try:
        yield executor
    finally:
        executor.stop()


class LocalExecutor:
    """Runs jobs one after another in this process.

    A job may already be running in another process with the same store. This executor then executes other jobs first,
    and waits when no other job is left.
    """

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self.store = store
        self.reporter = reporter
        self.time_left = TimeLeft(store)
        reporter.expect(self.time_left.seconds)

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        left = {job.digest: job for job in jobs}
        if announce:
            self.reporter.plan(len(left))
        if self.reporter.shows_items:
            self.time_left.add(left.values())
        outcomes: dict[str, Outcome] = {}
        reported_waiting = False
        while left:
            # After each executed job, start again at the first job. Another run may have finished it by now.
            for digest, job in left.items():
                if (outcome := self._try_job(job, outcomes, left)) is not None:
                    outcomes[digest] = outcome
                    del left[digest]
                    break
            else:
                if not reported_waiting:
                    self.reporter.note(
                        f"waiting: another run with this store is executing {next(iter(left.values())).label}"
                    )
                    reported_waiting = True
                time.sleep(WAIT_SECONDS)
        return outcomes

    def _try_job(self, job: Job, outcomes: Mapping[str, Outcome], left: Mapping[str, Job]) -> Outcome | None:
        """Execute the job if possible. Returns None if its inputs are not ready or another run is executing it."""
        if any(need.digest in left for need in job.needs.values()):
            return None
        outcome = outcome_without_work(self.store, job, outcomes)
        if outcome is None:
            outcome = claim_and_execute(self.store, job, outcomes, lambda: self._start(job), self._counted(job))
            if outcome is None:
                return None
        self.time_left.finish(outcome)
        self.reporter.finish(job.label, outcome.status, outcome.seconds)
        report_crash(self.reporter, outcome)
        return outcome

    def _start(self, job: Job) -> None:
        self.time_left.start(job)
        self.reporter.start(job.label)

    def _counted(self, job: Job) -> Callable[[int | None, str], Advance]:
        """Return a function for `StageContext.progress` that also updates the estimate of the time left."""

        def items(total: int | None, unit: str = "") -> Advance:
            advance, done = self.reporter.items(total, unit), 0

            def counted(n: int) -> None:
                nonlocal done
                done += n
                self.time_left.progress(job.digest, done, total)
                advance(n)

            return counted

        return items


def claim_and_execute(
    store: Store,
    job: Job,
    outcomes: Mapping[str, Outcome],
    started: Callable[[], None],
    progress: Callable[[int | None, str], Advance],
) -> Outcome | None:
    """Lock a job and execute it, unless another process has finished it before this one got the lock.

    Args:
        store: The artifact store.
        job: The job.
        outcomes: Successful outcome of each of its needs, by digest.
        started: Called when the execution begins.
        progress: See `execute_job`.

    Returns:
        The outcome; None if another process is executing the job.
    """
    with store.claim(job.stage, job.digest) as acquired:
        if not acquired:
            return None
        outcome = outcome_without_work(store, job, outcomes)
        if outcome is None:
            started()
            outcome = execute_job(store, job, need_paths(job, outcomes), progress)
        return outcome


def outcome_without_work(store: Store, job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Return the outcome of a job that is not executed, because it is in the store or one of its needs failed.

    If the stored artifact was computed from inputs whose contents differ from the present ones, it is removed.

    Args:
        store: The artifact store.
        job: The job.
        outcomes: Outcome of each of its needs, by digest.

    Returns:
        The outcome; None if the job must be executed.
    """
    for need in job.needs.values():
        if isinstance(need, Job) and outcomes[need.digest].path is None:
            return Outcome(job, "skipped", 0.0, None, f"{need.label}: {outcomes[need.digest].reason}")
    found = store.find(job.stage, job.digest)
    if found is None:
        return None
    manifest = read_manifest(found) or {}
    if manifest.get("made_from") != _contents(store, need_paths(job, outcomes)):
        store.discard(found)
        return None
    return Outcome(job, "cached", float(manifest.get("seconds", 0.0)), found)


def need_paths(job: Job, outcomes: Mapping[str, Outcome]) -> dict[str, Path]:
    """Return the folder of each input of a job.

    Args:
        job: The job.
        outcomes: Successful outcome of each of its needs, by digest.

    Returns:
        The folders, by the role of the input.
    """
    found: dict[str, Path] = {}
    for role, need in job.needs.items():
        path = need.path if isinstance(need, External) else outcomes[need.digest].path
        assert path is not None  # a job with a failed need was skipped before
        found[role] = path
    return found


def _contents(store: Store, needs: Mapping[str, Path]) -> dict[str, str]:
    """Return the content digests of those inputs that are artifacts. The job's digest covers all other inputs."""
    found = {role: store.content(path) for role, path in sorted(needs.items())}
    return {role: content for role, content in found.items() if content}


def execute_job(
    store: Store,
    job: Job,
    needs: Mapping[str, Path],
    progress: Callable[[int | None, str], Advance],
    shard: Shard | None = None,
) -> Outcome:
    """Execute a job that this process has locked, and store its output.

    Args:
        store: The artifact store.
        job: The job.
        needs: Folder of each input, by role.
        progress: Is called with the number of items and their unit. It returns a function that is called with the
            number of newly finished items.
        shard: If given, process only these items, keep the results in the job's journal, and store no artifact.

    Returns:
        The outcome.

    Raises:
        UserError: The whole run cannot continue, because an input has changed or a disk cannot be written.
    """
    for need in job.needs.values():
        check_unchanged(need)
    watch = Stopwatch()
    stage = stage_of(job.stage)
    scratch = store.scratch(job.stage, job.digest)
    about: dict[str, Any] = {"work": {}, "seconds": 0.0}

    def counted(total: int | None, unit: str) -> Advance:
        about.setdefault("setup", round(watch.seconds, 3))  # models and data are loaded before the items are counted
        if total is not None:
            about["work"][unit] = about["work"].get(unit, 0) + total
        return progress(total, unit)

    try:
        function = import_attribute(stage.function)
        made_from = _contents(store, needs)
        with ExitStack() as stack:
            if stage.resumable:
                journal = Journal(scratch, shard)
                about["seconds"] = journal.spent
                stack.enter_context(use_journal(journal))
            if shard is None:
                place = store.build(job.stage, job.digest, job.inputs, made_from, stage.unhashed_files, about)
                out = stack.enter_context(place)
            else:
                out = stack.enter_context(store.temporary_folder(job.stage))
            function(StageContext(job.params, needs, out, job.local, counted, scratch))
            if "model" in needs:
                about["parameters"] = count_parameters(needs["model"])
            about["machine"] = machine_name(str(job.local.get("device", "cpu")))
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as e:  # a panic in a library written in Rust (tokenizers) is not an `Exception`
        if message := disk_error_text(e):
            raise UserError(f"{job.label}: {message}", "fix this and repeat the command; finished work is kept") from e
        if isinstance(e, JobFailed) and shard is None:  # it would fail in the same way again
            store.clear_scratch(job.stage, job.digest)
        # After its shards, the job is executed as a whole. That execution writes the crash file.
        crash = None if isinstance(e, JobFailed) or shard is not None else _write_crash(store, job, e)
        named = "" if crash is None else f" (crash file: {crash.name})"
        return Outcome(job, "failed", watch.seconds, None, _reason(e) + named, crash=crash)
    if shard is not None:
        return Outcome(job, "shared", watch.seconds)
    store.clear_scratch(job.stage, job.digest)
    store.crash_file(job.stage, job.digest).unlink(missing_ok=True)
    return Outcome(job, "done", watch.seconds + about["seconds"], store.path(job.stage, job.digest))


def _reason(e: BaseException) -> str:
    """Return the message of an error. The name of its class is added where the message alone may be unclear."""
    text, kind = redact(text_of(e))[:500], type(e).__name__
    if text and (isinstance(e, WpnBenchError) or type(e) in (RuntimeError, ValueError, OSError, SafetensorError)):
        return text
    return f"{kind}: {text}" if text else kind


def _write_crash(store: Store, job: Job, e: BaseException) -> Path | None:
    """Write the traceback of an error to the crash file of the job. Returns None if the file cannot be written."""
    file = store.crash_file(job.stage, job.digest)
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text(crash_text(e, f"job: {job.label}"), encoding="utf-8", errors="backslashreplace")
    except (OSError, MemoryError):
        return None
    return file


def report_crash(reporter: Reporter, outcome: Outcome) -> None:
    """Print the path of a job's crash file, if it has one.

    Args:
        reporter: Prints the message.
        outcome: The outcome of the job.
    """
    if outcome.crash is not None:
        reporter.note(f"failed: {outcome.job.label}: the traceback is in {outcome.crash} (secrets are removed)")


def check_unchanged(need: Job | External) -> None:
    """Raise `UserError` if the files of an input have changed since its digest was computed."""
    if isinstance(need, External) and need.seen is not None and model_signature(need.path) != need.seen:
        raise UserError(
            f"the files in {need.path.name} changed during the run",
            "repeat the command; it then treats the changed files as another model",
        )
