"""Jobs, and who runs them.

A job is a stage with its parameters and the artifacts it needs. Its digest covers everything that decides its
output, so the whole plan of a run is known before the first job starts, and what the store already holds is not
run again.
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

from wpn_bench.core.files import disk_error_text, folder_signature
from wpn_bench.core.option import EXECUTION, Option
from wpn_bench.core.progress import Advance, Reporter, Stopwatch
from wpn_bench.core.registry import import_attribute
from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.jobs.job import External, Job, Outcome, StageContext
from wpn_bench.jobs.journal import Journal, Shard, use_journal
from wpn_bench.jobs.rates import machine_name
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import Store, read_manifest
from wpn_bench.redact import redact

WAIT_SECONDS = 0.3  # between two looks at what another run is at


class Executor(Protocol):
    """Whoever runs jobs. A failed job fails those that need it and no others."""

    store: Store
    reporter: Reporter

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        """Run `jobs` (each comes after those it needs). Returns outcomes by job digest.

        `announce` False: the reporter was told of these jobs already.
        """


@dataclass(frozen=True)
class Fleet:
    """Who is to run the jobs, and with how much each. Decides no result, so no digest knows of it.

    Of the executor `ray`: the address of a cluster (None: the one of RAY_ADDRESS, else one of this machine's own with so many
    `workers`), CPUs and, on CUDA, GPUs of a job (a part of one: several jobs share it), and into how many shares a job is
    cut that can be shared (None: as many as there are idle workers).
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
            raise UserError(f"{option} is for jobs over Ray", f"add --executor ray, or leave {option} out")
        if not (0 < self.gpus_per_job <= 1 or (self.gpus_per_job > 1 and self.gpus_per_job.is_integer())):
            raise UserError(f"--gpus-per-job {self.gpus_per_job:g} cannot be", "give a part of one, or a whole number")
        _, package = EXECUTORS[self.executor]
        if find_spec(package) is None:
            raise UserError(
                f"--executor {self.executor} needs {package}, which is not installed",
                f"pip install 'wpn-bench[{self.executor}]'",
            )

    def executing(self, store: Store, reporter: Reporter) -> AbstractContextManager[Executor]:
        """The executor, for as long as it is needed."""
        opened: AbstractContextManager[Executor] = import_attribute(EXECUTORS[self.executor][0])(self, store, reporter)
        return opened


# What makes each, and the package it needs.
EXECUTORS = {
    "local": ("wpn_bench.jobs.executor:local", "wpn_bench"),
    "ray": ("wpn_bench.jobs.ray_driver:ray_executor", "ray"),
}


def local(fleet: Fleet, store: Store, reporter: Reporter) -> AbstractContextManager[Executor]:
    """This process does all of it."""
    return nullcontext(LocalExecutor(store, reporter))


class LocalExecutor:
    """Runs jobs one after another in this process.

    What another run on the same store is at is left to it: this one goes on with other jobs, and waits only where there is
    nothing else to do.
    """

    def __init__(self, store: Store, reporter: Reporter) -> None:
        self.store = store
        self.reporter = reporter

    def run(self, jobs: Iterable[Job], announce: bool = True) -> dict[str, Outcome]:
        left = {job.digest: job for job in jobs}
        if announce:
            self.reporter.plan(len(left))
        outcomes: dict[str, Outcome] = {}
        told = False
        while left:
            # From the front after each: what another run had, it may have finished by now.
            for digest, job in left.items():
                if (outcome := self._turn(job, outcomes, left)) is not None:
                    outcomes[digest] = outcome
                    del left[digest]
                    break
            else:
                if not told:
                    self.reporter.note(f"waiting: another run on this store is at {next(iter(left.values())).label}")
                    told = True
                time.sleep(WAIT_SECONDS)
        return outcomes

    def _turn(self, job: Job, outcomes: Mapping[str, Outcome], left: Mapping[str, Job]) -> Outcome | None:
        """How the job ended; None if it cannot be ended now."""
        if any(need.digest in left for need in job.needs.values()):
            return None
        outcome = settled(self.store, job, outcomes)
        if outcome is None:
            with self.store.claim(job.stage, job.digest) as free:
                if not free:
                    return None
                self.reporter.start(job.label)
                # Again: whoever had it may have finished it between the two.
                outcome = settled(self.store, job, outcomes) or perform(
                    self.store, job, found_needs(job, outcomes), self.reporter.items
                )
        else:
            self.reporter.start(job.label)
        self.reporter.finish(job.label, outcome.status, outcome.seconds)
        return outcome


def settled(store: Store, job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """How the job ended if nothing is to be done for it: it is in the store, or something it needs is not to be had.

    What was made from something else than the job's needs hold now is taken out of the store.
    """
    for need in job.needs.values():
        if isinstance(need, Job) and outcomes[need.digest].path is None:
            return Outcome(job, "skipped", 0.0, None, f"{need.label}: {outcomes[need.digest].reason}")
    found = store.find(job.stage, job.digest)
    if found is None:
        return None
    manifest = read_manifest(found) or {}
    if manifest.get("made_from") != _contents(store, found_needs(job, outcomes)):
        store.discard(found)
        return None
    return Outcome(job, "cached", float(manifest.get("seconds", 0.0)), found)


def found_needs(job: Job, outcomes: Mapping[str, Outcome]) -> dict[str, Path]:
    """Where each need of the job lies, once all are there."""
    found: dict[str, Path] = {}
    for role, need in job.needs.items():
        path = need.path if isinstance(need, External) else outcomes[need.digest].path
        assert path is not None  # or the job was settled as skipped
        found[role] = path
    return found


def _contents(store: Store, needs: Mapping[str, Path]) -> dict[str, str]:
    """The contents of the artifacts that a job is made from; what lies outside the store is in its digest."""
    found = {role: store.content(path) for role, path in sorted(needs.items())}
    return {role: content for role, content in found.items() if content}


def perform(
    store: Store,
    job: Job,
    needs: Mapping[str, Path],
    progress: Callable[[int | None, str], Advance],
    share: Shard | None = None,
) -> Outcome:
    """Do the job, which this process has claimed, and put what it leaves into the store.

    With a `share` only that part of its items is worked at and kept in its journal; nothing is put into the store. Raises
    `UserError` where it is no use to go on with other jobs either: bad input, no room on the disk.
    """
    watch = Stopwatch()
    stage = stage_of(job.stage)
    scratch = store.scratch(job.stage, job.digest)
    about: dict[str, Any] = {"work": {}, "seconds": 0.0}

    def counted(total: int | None, unit: str) -> Advance:
        if total is not None:
            about["work"][unit] = about["work"].get(unit, 0) + total
        return progress(total, unit)

    try:
        for need in job.needs.values():
            check_unchanged(need)
        function = import_attribute(stage.function)
        made_from = _contents(store, needs)
        with ExitStack() as stack:
            if stage.resumable:
                journal = Journal(scratch, share)
                about["seconds"] = journal.spent
                stack.enter_context(use_journal(journal))
            if share is None:
                place = store.build(job.stage, job.digest, job.inputs, made_from, stage.unhashed_files, about)
                out = stack.enter_context(place)
            else:
                out = stack.enter_context(store.temporary_folder(job.stage))
            function(StageContext(job.params, needs, out, job.local, counted, scratch))
            if "model" in needs:
                about["parameters"] = count_parameters(needs["model"])
            about["machine"] = machine_name(str(job.local.get("device", "cpu")))
    except UserError:
        raise
    except (JobFailed, RuntimeError, ValueError, OSError, MemoryError, SafetensorError) as e:
        if said := disk_error_text(e):
            raise UserError(
                f"{job.label}: {said}", "mend that, then type the same command again: what is finished is kept"
            ) from e
        if isinstance(e, JobFailed) and share is None:  # the same would happen again; short memory may pass
            store.clear_scratch(job.stage, job.digest)
        reason = redact(" ".join(str(e).split()))[:500] or type(e).__name__
        return Outcome(job, "failed", watch.seconds, None, reason)
    if share is not None:
        return Outcome(job, "shared", watch.seconds)
    store.clear_scratch(job.stage, job.digest)
    return Outcome(job, "done", watch.seconds + about["seconds"], store.path(job.stage, job.digest))


def check_unchanged(need: Job | External) -> None:
    """Raise `UserError` if files that this very run was to be about have changed since it looked at them."""
    if isinstance(need, External) and need.seen is not None and folder_signature(need.path) != need.seen:
        raise UserError(
            f"the files in {need.path.name} changed while the run was under way",
            "type the same command again: it will take them for the other model that they are",
        )
