"""Forecast a run: its jobs, and their duration on a number of machines, estimated from earlier measurements.

The run is planned in the same way as by `full`. Jobs whose results are in the store take no time. Jobs that depend on
results (trials, curves, relearning and its search) cannot be planned yet. The forecast lists them without a duration.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wpn_bench.attacks import relearn_search
from wpn_bench.config import RunConfig
from wpn_bench.core.machine import torch_threads
from wpn_bench.core.progress import Reporter
from wpn_bench.core.weights import count_parameters
from wpn_bench.jobs.job import Job
from wpn_bench.jobs.processes import has_independent_items, processes_for_small_models
from wpn_bench.jobs.rates import Estimate, Rates, count_items, job_kind, machine_name
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline import inputs as pipeline_inputs
from wpn_bench.pipeline.planner import Planner
from wpn_bench.pipeline.stored import with_stored_inputs
from wpn_bench.pipeline.trials import plan_configured


@dataclass(frozen=True)
class Line:
    """The jobs of one stage.

    Attributes:
        stage: Name of the stage.
        jobs: Number of jobs.
        done: Number of jobs with results in the store.
        seconds: Expected duration of the other jobs, one after another.
        scaled: Number of jobs whose estimate is from a model of another size, or from other settings of the stage.
        unknown: Number of jobs for which no duration was measured.
    """

    stage: str
    jobs: int
    done: int
    seconds: float
    scaled: int
    unknown: int


@dataclass(frozen=True)
class Forecast:
    """Expected duration of a run: `work` seconds one job after another, or `seconds` on `workers` machines.

    Each worker is assumed to be like this machine and to execute one job at a time, or several of the lab's small model. `open` lists the jobs that are not
    included.
    """

    model: str
    parameters: int
    machine: str
    workers: int
    lines: tuple[Line, ...]
    work: float
    seconds: float
    open: tuple[str, ...]

    @property
    def unknown(self) -> int:
        return sum(line.unknown for line in self.lines)


def forecast(config: RunConfig, root: Path, workers: int, reporter: Reporter) -> Forecast:
    """Forecast a run. It raises `UserError` for every input that the run would refuse.

    Args:
        config: Settings of the run.
        root: Folder of the store.
        workers: Number of machines.
        reporter: Shows notes to the user.

    Returns:
        The forecast.
    """
    store = Store(root)
    inputs = pipeline_inputs.prepare(config, reporter)
    planner, before = with_stored_inputs(Planner(config, inputs, store))
    jobs_of_run = [*before, *planner.plan().jobs]
    rates = Rates.from_store(root)
    here = machine_name(inputs.device)
    # The lab's model runs in several processes of one thread each, apart from jobs whose result depends on the threads.
    processes = processes_for_small_models() if inputs.model.is_lab else 1
    with torch_threads(1):
        alone = machine_name(inputs.device) if processes > 1 else here
    parameters = count_parameters(inputs.model.path)
    jobs = list({job.digest: job for job in jobs_of_run}.values())
    seconds: dict[str, float] = {}
    by_stage: dict[str, list[tuple[Job, str]]] = {}

    def expected(job: Job) -> Estimate:
        kind = job_kind(job.stage, job.params)
        machine = alone if has_independent_items(job) else here
        return rates.estimate(kind, count_items(job) or rates.items(kind) or 0, parameters, machine)

    for job in jobs:
        how = "done"
        seconds[job.digest] = 0.0
        if store.find(job.stage, job.digest) is None:
            one = expected(job)
            how, seconds[job.digest] = one.measured, one.seconds
        by_stage.setdefault(job.stage, []).append((job, how))
    lines = tuple(
        Line(
            stage,
            len(of),
            sum(how == "done" for _, how in of),
            sum(seconds[job.digest] for job, _ in of),
            sum(how == "scaled" for _, how in of),
            sum(how == "none" for _, how in of),
        )
        for stage, of in by_stage.items()
    )
    work = sum(seconds.values())
    return Forecast(
        config.model,
        parameters,
        here,
        workers,
        lines,
        work,
        makespan(jobs, seconds, workers * processes),
        tuple(_open(config, [expected(job) for plan in plan_configured(planner).values() for job in plan.jobs])),
    )


def makespan(jobs: Sequence[Job], seconds: Mapping[str, float], workers: int) -> float:
    """Simulate list scheduling: a free worker takes the first job whose inputs are finished.

    Args:
        jobs: The jobs in order of priority.
        seconds: Duration of each job, by its digest.
        workers: Number of workers.

    Returns:
        The seconds until the last job ends.
    """
    left = {job.digest: {need.digest for need in job.needs.values() if isinstance(need, Job)} for job in jobs}
    for needs in left.values():
        needs &= left.keys()
    running: list[tuple[float, str]] = []
    now = 0.0
    while left or running:
        ready = [digest for digest, needs in left.items() if not needs]
        for digest in ready[: workers - len(running)]:
            del left[digest]
            heapq.heappush(running, (now + seconds[digest], digest))
        now, ended = heapq.heappop(running)
        for needs in left.values():
            needs.discard(ended)
    return now


def _open(config: RunConfig, trial: Sequence[Estimate]) -> list[str]:
    """Describe the jobs that depend on results and cannot be planned yet.

    Args:
        config: Settings of the run.
        trial: Durations of the jobs of one trial of each method.

    Returns:
        One text for each kind of jobs.
    """
    found = []
    if config.tune:
        text = f"tuning: {config.tune} trials of each of {len(config.methods)} methods, a training and its measurement each"
        if all(one.measured != "none" for one in trial):
            text += f"; about {_time(config.tune * sum(one.seconds for one in trial))} if all train to their end"
            text += ", and less because some are stopped early" if config.tune_halving else ""
        found.append(text)
    if config.curve:
        found.append(
            f"curves of {', '.join(config.curve_methods())}: a training each, measured after each of {len(config.curve.steps)} steps"
        )
    if config.relearn and "attack" in config.stages:
        models_ = (1 + len(config.methods)) * len(config.seeds)
        found.append(
            f"relearning: {models_ * len(config.relearn.kinds)} trainings, measured after each of {len(config.relearn.steps)} steps"
        )
    if (settings := config.relearn_search) and "attack" in config.stages:
        models_ = 1 + len(config.methods) * len(config.seeds) + len(config.candidates)
        found.append(
            f"relearning search: {settings.attacks} trainings and the best once more on each of {models_} models, at most"
            f" {relearn_search.most_steps(settings):,} steps on each, and fewer where an attack succeeds early"
        )
    return found


def show(found: Forecast, as_json: bool) -> None:
    """Print the forecast.

    Args:
        found: The forecast.
        as_json: Whether to print JSON instead of a table.
    """
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.model}: {found.parameters / 1e6:,.1f} M parameters, {found.machine}")
    for name in ("stage", "jobs", "done", "to do", "expected"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for line in found.lines:
        said = _time(line.seconds) + (" (from other sizes or settings)" if line.scaled else "")
        if line.unknown:
            said = f"{said} + {line.unknown} unknown" if line.seconds else "unknown"
        table.add_row(line.stage, str(line.jobs), str(line.done), str(line.jobs - line.done), said)
    Console().print(table)
    n = sum(line.jobs - line.done for line in found.lines)
    print(f"{n} jobs to do: {_time(found.work)} one after another, {_time(found.seconds)} on {found.workers} workers")
    for text in found.open:
        print(f"not included: {text}")
    if found.unknown:
        print(
            f"{found.unknown} jobs are of a kind that was never measured on this machine: run a few of them first"
            " (`wpn-bench full` with the same options and --limit 20), then repeat this command"
        )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
