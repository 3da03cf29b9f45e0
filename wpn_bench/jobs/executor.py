"""Execute jobs.

The digest of a job covers everything that decides its output. So the whole plan of a run is known before the first job starts,
and jobs whose artifacts are in the store are not executed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
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

WAIT_SECONDS = 0.3  # between two checks of a job that another run is executing


class Executor(Protocol):
    """Executes jobs. If a job fails, those that need it are skipped and all others continue."""

    store: Store
    reporter: Reporter

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        """Execute jobs.

        Args:
            jobs: The jobs. Each comes after those that it needs.
            announce: Whether to report their number; False if it was reported already.

        Returns:
            Outcomes by job digest.
        """


@dataclass(frozen=True)
class Fleet:
    """The executor and its resources. They do not change results and are not part of any digest.

    Attributes:
        executor: `local` or `ray`. The other settings are for `ray`.
        ray_address: Address of a cluster; None is RAY_ADDRESS, else a new cluster on this machine.
        workers: Number of concurrent jobs of a new cluster.
        cpus_per_job: CPUs of a job.
        gpus_per_job: GPUs of a job on CUDA; with a fraction, several jobs share one.
        shards: Number of shards of a job; None splits it between idle workers.
    """

    executor: Annotated[
        str,
        Option(
            help="local (one job after another, the default) or ray (several at once, on this machine or a cluster).",
            panel=EXECUTION,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        Option(
            help="HOST:PORT or auto: a Ray cluster whose nodes share the store (default: RAY_ADDRESS, else a new one on this "
            "machine).",
            panel=EXECUTION,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Option(type=int, help="Jobs at once on this machine (default: its CPUs / --cpus-per-job).", panel=EXECUTION),
    ] = None
    cpus_per_job: Annotated[
        int | None,
        Option(type=int, help="Threads of a job (default: OMP_NUM_THREADS, else up to 4).", panel=EXECUTION),
    ] = None
    gpus_per_job: Annotated[
        float,
        Option(type=float, help="GPUs of a job on CUDA (1); 0.5: two jobs share one, if both fit.", panel=EXECUTION),
    ] = 1.0
    shards: Annotated[
        int | None,
        Option(
            type=int,
            help="Parts into which the prompts and requests of a job are split (default: as many as there are idle "
            "workers; 1: never).",
            panel=EXECUTION,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"unknown executor {self.executor!r}", f"choose from {', '.join(EXECUTORS)}")
        changed = [f.name for f in fields(self) if f.name != "executor" and getattr(self, f.name) != f.default]
        if changed and self.executor == "local":
            option = "--" + changed[0].replace("_", "-")
            raise UserError(f"{option} needs the executor ray", f"add --executor ray, or omit {option}")
        if not (0 < self.gpus_per_job <= 1 or (self.gpus_per_job > 1 and self.gpus_per_job.is_integer())):
            raise UserError(
                f"--gpus-per-job {self.gpus_per_job:g} is invalid", "give a fraction of 1, or a whole number"
            )
        _, package = EXECUTORS[self.executor]
        if find_spec(package) is None:
            raise UserError(
                f"--executor {self.executor} needs {package}, which is not installed",
                f"pip install 'wpn-bench[{self.executor}]'",
            )

    def open_executor(self, store: Store, reporter: Reporter) -> AbstractContextManager[Executor]:
        """Create the executor.

        Args:
            store: The artifact store.
            reporter: Shows the progress.

        Returns:
            A context manager of the executor.
        """
        opened: AbstractContextManager[Executor] = import_attribute(EXECUTORS[self.executor][0])(self, store, reporter)
        return opened


# Name -> (function that creates it, package that it needs)
EXECUTORS = {
    "local": ("wpn_bench.jobs.executor:local_executor", "wpn_bench"),
    "ray": ("wpn_bench.jobs.ray_driver:ray_executor", "ray"),
}


def local_executor(fleet: Fleet, store: Store, reporter: Reporter) -> AbstractContextManager[Executor]:
    """Create an executor that runs all jobs in this process.

    Args:
        fleet: Not used; the signature is that of all executors.
        store: The artifact store.
        reporter: Shows the progress.

    Returns:
        A context manager of the executor.
    """
    return nullcontext(LocalExecutor(store, reporter))


class LocalExecutor:
    """Runs jobs one after another in this process.

    A job that another run with the same store is executing is left to that run. Meanwhile other jobs are executed; only if
    there are none left does this executor wait.
    """

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self.store = store
        self.reporter = reporter
        self._time_left = TimeLeft(store)
        reporter.expect(self._time_left.seconds)

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        left = {job.digest: job for job in jobs}
        if announce:
            self.reporter.plan(len(left))
        if self.reporter.shows_items:
            self._time_left.add(left.values())
        outcomes: dict[str, Outcome] = {}
        reported_waiting = False
        while left:
            # Start again at the first job after each one: another run may have finished it by now.
            for digest, job in left.items():
                if (outcome := self._try_job(job, outcomes, left)) is not None:
                    outcomes[digest] = outcome
                    del left[digest]
                    break
            else:
                if not reported_waiting:
                    self.reporter.note(
                        f"waiting: another run with this store is working on {next(iter(left.values())).label}"
                    )
                    reported_waiting = True
                time.sleep(WAIT_SECONDS)
        return outcomes

    def _try_job(self, job: Job, outcomes: Mapping[str, Outcome], left: Mapping[str, Job]) -> Outcome | None:
        """Execute the job if possible; None if its needs are missing or another run is executing it."""
        if any(need.digest in left for need in job.needs.values()):
            return None
        outcome = outcome_without_work(self.store, job, outcomes)
        if outcome is None:
            with self.store.claim(job.stage, job.digest) as acquired:
                if not acquired:
                    return None
                self._time_left.start(job)
                self.reporter.start(job.label)
                # Checked again: another process may have finished it before the lock was acquired.
                outcome = outcome_without_work(self.store, job, outcomes) or execute_job(
                    self.store, job, need_paths(job, outcomes), self._counted(job)
                )
        self._time_left.finish(outcome)
        self.reporter.finish(job.label, outcome.status, outcome.seconds)
        report_crash(self.reporter, outcome)
        return outcome

    def _counted(self, job: Job) -> Callable[[int | None, str], Advance]:
        """Return a function for `StageContext.progress` that also tells the estimate of the time left."""

        def items(total: int | None, unit: str = "") -> Advance:
            advance, done = self.reporter.items(total, unit), 0

            def counted(n: int) -> None:
                nonlocal done
                done += n
                self._time_left.progress(job.digest, done, total)
                advance(n)

            return counted

        return items


def outcome_without_work(store: Store, job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Return the outcome of a job that needs no execution: it is in the store, or one of its needs failed.

    An artifact that was made from other contents than those of the current needs is removed from the store.

    Args:
        store: The artifact store.
        job: The job.
        outcomes: Outcomes of its needs by digest.

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
        outcomes: Successful outcomes of its needs by digest.

    Returns:
        Folders by role.
    """
    found: dict[str, Path] = {}
    for role, need in job.needs.items():
        path = need.path if isinstance(need, External) else outcomes[need.digest].path
        assert path is not None  # otherwise the job was skipped
        found[role] = path
    return found


def _contents(store: Store, needs: Mapping[str, Path]) -> dict[str, str]:
    """Return the content digests of a job's inputs in the store. Other inputs are covered by the job's digest."""
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
        progress: Reports the number of items and their unit; returns the function to call with each n done.
        shard: Process only these items and keep them in the job's journal, without storing an artifact.

    Returns:
        The outcome.

    Raises:
        UserError: The run as a whole cannot continue: an input has changed, or a disk cannot be written.
    """
    for need in job.needs.values():
        check_unchanged(need)
    watch = Stopwatch()
    stage = stage_of(job.stage)
    scratch = store.scratch(job.stage, job.digest)
    about: dict[str, Any] = {"work": {}, "seconds": 0.0}

    def counted(total: int | None, unit: str) -> Advance:
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
    except BaseException as e:  # a panic of a library written in Rust (tokenizers) is no `Exception`
        if message := disk_error_text(e):
            raise UserError(f"{job.label}: {message}", "fix this and repeat the command: finished work is kept") from e
        if isinstance(e, JobFailed) and shard is None:  # it would fail again; out of memory may not
            store.clear_scratch(job.stage, job.digest)
        # The job is executed as a whole after its shards, and then writes the crash file.
        crash = None if isinstance(e, JobFailed) or shard is not None else _write_crash(store, job, e)
        named = "" if crash is None else f" (crash file: {crash.name})"
        return Outcome(job, "failed", watch.seconds, None, _reason(e) + named, crash=crash)
    if shard is not None:
        return Outcome(job, "shared", watch.seconds)
    store.clear_scratch(job.stage, job.digest)
    store.crash_file(job.stage, job.digest).unlink(missing_ok=True)
    return Outcome(job, "done", watch.seconds + about["seconds"], store.path(job.stage, job.digest))


def _reason(e: BaseException) -> str:
    """Return the message of an error, with the name of its class where the message alone may say nothing."""
    text, kind = redact(text_of(e))[:500], type(e).__name__
    if text and (isinstance(e, WpnBenchError) or type(e) in (RuntimeError, ValueError, OSError, SafetensorError)):
        return text
    return f"{kind}: {text}" if text else kind


def _write_crash(store: Store, job: Job, e: BaseException) -> Path | None:
    """Write the traceback of an error to the crash file of the job; None if it cannot be written."""
    file = store.crash_file(job.stage, job.digest)
    try:
        file.parent.mkdir(exist_ok=True)
        file.write_text(crash_text(e, f"job: {job.label}"), encoding="utf-8", errors="backslashreplace")
    except (OSError, MemoryError):
        return None
    return file


def report_crash(reporter: Reporter, outcome: Outcome) -> None:
    """Print the path of the crash file of a job, if it has one.

    Args:
        reporter: Prints it.
        outcome: How the job ended.
    """
    if outcome.crash is not None:
        reporter.note(f"failed: {outcome.job.label}: the traceback is in {outcome.crash} (secrets are removed)")


def check_unchanged(need: Job | External) -> None:
    """Raise `UserError` if the files of an input have changed since its digest was computed."""
    if isinstance(need, External) and need.seen is not None and model_signature(need.path) != need.seen:
        raise UserError(
            f"the files in {need.path.name} changed during the run",
            "repeat the command: it will use them as another model",
        )
