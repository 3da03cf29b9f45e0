"""The steps of a run.

1. `prepare` reads and checks the inputs. It reports every mistake of the user before hours of computation.
2. `vet_forget_set` removes training responses that the judge calls harmful.
3. `answer_benign` makes training items of benign prompts, if there are any.
4. `write_references` and `select_references` choose the harmless references to train on, if the settings ask for it.
5. `tune_methods` chooses the options of each method, if tuning is enabled.
6. `Planner` lists the jobs, and an executor executes them.
7. `measure_curves` and `measure_relearning` measure models during training and relearning, and `search_relearning` searches the best
   relearning attack on each model.
8. `write` writes results, samples, manifest and reports to the run folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from wpn_bench.config import RunConfig
from wpn_bench.core import consent
from wpn_bench.core.files import digest_of, disk_error_text, try_lock_temporary
from wpn_bench.core.paths import display_path
from wpn_bench.core.progress import Reporter
from wpn_bench.core.progress_lines import Lines, Logged
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Fleet
from wpn_bench.jobs.job import External
from wpn_bench.jobs.processes import processes_for_small_models
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline.benign import answer_benign
from wpn_bench.pipeline.followups import (
    measure_curves,
    measure_relearning,
    select_references,
    vet_forget_set,
)
from wpn_bench.pipeline.inputs import Inputs, prepare
from wpn_bench.pipeline.planner import Planner
from wpn_bench.pipeline.relearn_search import check_relearn_search, search_relearning
from wpn_bench.pipeline.results import CompletedRun, write
from wpn_bench.pipeline.stored import with_stored_inputs
from wpn_bench.pipeline.trials import tune_methods
from wpn_bench.pipeline.written import write_references
from wpn_bench.preflight import estimates, resources
from wpn_bench.runs.files import LOG


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
    """Execute a run and write the run folder. If a job fails, its model fails, and the run continues.

    Args:
        config: Settings of the run.
        out: The run folder.
        store: Folder of the store.
        reporter: Shows the progress.
        command: The command line, which is recorded.
        force: Whether to start although the estimate of memory or disk space exceeds what is available.
        fleet: Settings of the executor.

    Returns:
        The results, as in results.json.

    Raises:
        UserError: The user must change something. The message tells what.
    """
    check_writable(out)
    logs = out.resolve() / "logs"
    log = Lines()
    reporter = Logged(reporter, log)
    agreed = consent.granted(code=config.trust_remote_code, pickles=config.allow_pickle)
    with agreed, reporter, lock_run_dir(out), disk_full_as_user_error(out, store), contextlib.ExitStack() as stack:
        log.note(command)
        try:
            shelf = Store(store)
            with reporter.activity("find the model, read the prompts"):
                inputs = prepare(config, reporter, force=force)
                # Errors in planning are reported before anything is computed.
                Planner(config, inputs, shelf, logs).plan()
                check_relearn_search(Planner(config, inputs, shelf))
                _check_store(config, inputs, shelf, reporter, force)
        except (UserError, KeyboardInterrupt):
            # No job ran, so remove the run folder if it is empty.
            with contextlib.suppress(OSError):
                out.rmdir()
            raise
        log.open(out / LOG)
        if inputs.model.is_lab and fleet.workers is None and fleet.executor == "local":
            fleet = replace(fleet, workers=processes_for_small_models())
        executor = stack.enter_context(fleet.open_executor(shelf, reporter))
        inputs, vetting = vet_forget_set(Planner(config, inputs, shelf), executor)
        inputs, answering = answer_benign(Planner(config, inputs, shelf), executor)
        inputs, writing = write_references(Planner(config, inputs, shelf), executor)
        inputs = select_references(Planner(config, inputs, shelf), reporter)
        planner = Planner(config, inputs, shelf)
        trials = tune_methods(planner, executor)
        tuned = replace(planner, config=trials.applied(config))
        plan = replace(tuned, logs=logs).plan()
        outcomes = executor.run(plan.jobs)
        curves = measure_curves(tuned, executor)
        paths = {key: (outcomes[job.digest].path, job.digest) for key, job in plan.trained.items()}
        trained = {key: External(path, digest) for key, (path, digest) in paths.items() if path is not None}
        seed = config.seeds[0]
        trained |= {(one.name, seed): planner.candidate(one) for one in inputs.candidates if not one.remote}
        relearning = measure_relearning(planner, executor, trained)
        searched = search_relearning(planner, executor, trained)
        with reporter.activity("compare and report"):
            all_outcomes = {**vetting, **answering, **writing, **outcomes}
            done = CompletedRun(config, inputs, plan, all_outcomes, trials, curves, relearning, searched)
            results = write(done, out, command)
        for item in results["run"]["failed"]:
            log.note(f"failed: {item['job']}: {item['reason']}")
        return results


@contextlib.contextmanager
def lock_run_dir(out: Path) -> Iterator[None]:
    """Lock a run folder within a `with` block. Raises `UserError` if another process has locked it."""
    digest = digest_of(str(out.resolve()))[:16]
    with try_lock_temporary(Path(tempfile.gettempdir()) / f"wpn-bench-{os.getuid()}" / digest) as free:
        if not free:
            raise UserError(
                f"another wpn-bench process is using the run folder {out}", "wait until it ends, or give another --out"
            )
        yield


@contextlib.contextmanager
def disk_full_as_user_error(out: Path, store: Path) -> Iterator[None]:
    """Convert the `OSError` of a full, read-only or defective disk to a `UserError` within a `with` block.

    Args:
        out: The run folder.
        store: Folder of the store.

    Raises:
        UserError: The disk cannot be written.
    """
    try:
        yield
    except OSError as e:
        said = disk_error_text(e)
        if said is None:
            raise
        raise UserError(
            f"{display_path(e.filename) if e.filename else f'{out} or {store}'} cannot be written: {said}",
            "fix this, then repeat the command; finished work is kept",
        ) from e


def _check_store(config: RunConfig, inputs: Inputs, store: Store, reporter: Reporter, force: bool) -> None:
    """Raise `UserError` if the disk of the store is too small for the models that have not been trained yet."""
    subject = estimates.ModelSpec.of(config)
    if subject is None or not config.methods:
        return
    if config.tune:
        # The options of the trials are not known yet, so every stored training of this model counts as done.
        done = estimates.count_trainings(store.root, inputs.model.digest)
    else:
        planner, _ = with_stored_inputs(Planner(config, inputs, store))
        trained = planner.plan().trained.values()
        done = sum(store.find(job.stage, job.digest) is not None for job in trained)
    resources.raise_if_too_large([resources.check_store(subject, store.root, done)], force=force, warn=reporter.note)


def check_writable(out: Path) -> None:
    """Create the run folder. Raises `UserError` if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(
            f"the output folder {out} cannot be written ({e.strerror})", "give another folder with --out"
        ) from e
