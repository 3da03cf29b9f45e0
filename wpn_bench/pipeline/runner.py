"""The order of stages: what a run reads, which jobs it consists of, and what it writes in the end.

`prepare` reads and checks everything (all that a person can get wrong is said there, before hours of work), `tuned`
chooses each method's options where that is asked for, `plan` lists the jobs, an executor runs them, `curves` measures
methods while they train, `relearning_memory` what comes back when they are trained on, `write` puts results, samples, manifest
and reports into the run folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wpn_bench.config import RunConfig
from wpn_bench.core import consent
from wpn_bench.core.files import digest_of, disk_error_text, try_lock_temporary
from wpn_bench.core.paths import display_path
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Fleet, LocalExecutor
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline.followups import curves, relearning, tuned, vetted
from wpn_bench.pipeline.inputs import Inputs, prepare
from wpn_bench.pipeline.planner import _vet_job, plan
from wpn_bench.pipeline.results import write
from wpn_bench.preflight import estimates, resources


def run(
    config: RunConfig,
    *,
    out: Path,
    store: Path,
    reporter: Reporter,
    command: str,
    force: bool = False,
    fleet: Fleet = Fleet(),
) -> dict[str, Any]:
    """Do the whole run and write its folder; returns the results. A failed job fails its model, not the run. With `force`
    it begins although it does not seem to fit."""
    check_writable(out)
    logs = out.resolve() / "logs"
    agreed = consent.granted(code=config.trust_remote_code, pickles=config.allow_pickle)
    with agreed, reporter, _alone(out), _room(out, store), contextlib.ExitStack() as stack:
        try:
            shelf = Store(store)
            with reporter.activity("find the model, read the prompts"):
                inputs = prepare(config, reporter, force=force)
                plan(config, inputs, shelf, logs)  # what cannot be planned is said before anything is computed
                _check_store(config, inputs, shelf, reporter, force)
        except (UserError, KeyboardInterrupt):
            # Nothing ran: a folder made for nothing goes again (one that holds anything stays).
            with contextlib.suppress(OSError):
                out.rmdir()
            raise
        executor = stack.enter_context(fleet.open_executor(shelf, reporter))
        inputs, vetting = vetted(config, inputs, shelf, executor)
        trials = tuned(config, inputs, shelf, executor)
        made = plan(trials.applied(config), inputs, shelf, logs)
        outcomes = executor.run(made.jobs)
        drawn = curves(trials.applied(config), inputs, shelf, executor)
        relearnt = relearning(config, inputs, shelf, executor, made, outcomes)
        with reporter.activity("compare and report"):
            return write(config, inputs, made, {**vetting, **outcomes}, out, command, trials, drawn, relearnt)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other process writes this run folder meanwhile."""
    digest = digest_of(str(out.resolve()))[:16]
    with try_lock_temporary(Path(tempfile.gettempdir()) / f"wpn-bench-{os.getuid()}" / digest) as free:
        if not free:
            raise UserError(
                f"another wpn-bench is at work on the run folder {out}", "wait for it, or give another --out"
            )
        yield


@contextlib.contextmanager
def _room(out: Path, store: Path) -> Iterator[None]:
    """A disk that takes no more is said in one line."""
    try:
        yield
    except OSError as e:
        said = disk_error_text(e)
        if said is None:
            raise
        raise UserError(
            f"{display_path(e.filename) if e.filename else f'{out} or {store}'} cannot be written: {said}",
            "mend that, then type the same command again: what is finished is kept",
        ) from e


def _check_store(config: RunConfig, inputs: Inputs, store: Store, reporter: Reporter, force: bool) -> None:
    """Whether what is still to be trained fits into the store. A run that goes on needs less than one that begins."""
    subject = estimates.ModelSpec.of(config)
    if subject is None or not config.methods:
        return
    if config.tune:
        # Which trials there will be is not known ahead: any training of this model counts for one of them.
        done = estimates.count_trainings(store.root, inputs.model.digest)
    else:
        vet = _vet_job(config, inputs, store) if config.vet else None
        if vet and store.find(vet.stage, vet.digest):
            inputs, _ = vetted(config, inputs, store, LocalExecutor(store, Reporter()))
        trained = plan(config, inputs, store).trained.values()
        done = sum(store.find(job.stage, job.digest) is not None for job in trained)
    resources.raise_if_too_large([resources.check_store(subject, store.root, done)], force=force, warn=reporter.note)


def check_writable(out: Path) -> None:
    """Make the run folder, or say why not, before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"the output folder {out} cannot be written ({e.strerror})", "give another with --out") from e
