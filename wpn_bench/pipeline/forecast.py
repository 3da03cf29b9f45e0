"""What a run will take, before it begins: its jobs, and from rates measured before the time on so many machines.

The run is planned as `full` plans it; what the store holds already costs nothing. Jobs that follow from others' results
(trials, curves, relearning) are not in the plan before these are there: of them trials are counted by their number, the
others are named.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from wpn_bench.config import RunConfig
from wpn_bench.core.progress import Reporter
from wpn_bench.core.weights import count_parameters
from wpn_bench.jobs.job import External, Job
from wpn_bench.jobs.rates import Rates, job_kind, machine_name
from wpn_bench.jobs.stages import stage_of
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline import inputs as pipeline_inputs
from wpn_bench.pipeline.planner import Planner
from wpn_bench.prompts.items import ITEMS


@dataclass(frozen=True)
class Line:
    """The jobs of one stage: how many, how many of them are done already, seconds that the rest will take one after
    another, and of how many of these nothing alike was ever measured here."""

    stage: str
    jobs: int
    done: int
    seconds: float
    scaled: int
    unknown: int


@dataclass(frozen=True)
class Forecast:
    """`work` seconds one after another; `seconds` on the `workers` of a fleet, each like this machine and one job at a time.

    `open`: what is not in it.
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
    """What `config` will take with the store `root`. Raises `UserError` for whatever the run itself would refuse."""
    store = Store(root)
    inputs = pipeline_inputs.prepare(config, reporter)
    plan = Planner(config, inputs, store).plan()
    rates = Rates.from_store(root)
    here = machine_name(inputs.device)
    parameters = count_parameters(inputs.model.path)
    jobs = list({job.digest: job for job in plan.jobs}.values())
    seconds: dict[str, float] = {}
    by_stage: dict[str, list[tuple[Job, str]]] = {}
    for job in jobs:
        how = "done"
        seconds[job.digest] = 0.0
        if store.find(job.stage, job.digest) is None:
            kind = job_kind(job.stage, job.params)
            n = _items(job) or rates.items(kind) or 0
            expected = rates.estimate(kind, n, parameters, here)
            how, seconds[job.digest] = expected.measured, expected.seconds
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
        makespan(jobs, seconds, workers),
        tuple(_open(config)),
    )


def makespan(jobs: Sequence[Job], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until the last job ends, when a free worker takes the first job of the list whose needs are there."""
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


def _items(job: Job) -> int | None:
    """How many items a job's stage will iterate over, passes counted; None if only the stage itself can tell."""
    stage = stage_of(job.stage)
    where, *path = stage.items.split(".")
    if where == "params":
        number: Any = reduce(lambda value, name: value[name], path, job.params)
        return int(number) * stage.passes
    need = job.needs.get(path[0]) if path else None
    if isinstance(need, Job):
        found = _items(need)
        return None if found is None else found * stage.passes
    if not isinstance(need, External):
        return None
    file = next((need.path / name for name in (ITEMS, "texts.jsonl") if (need.path / name).is_file()), None)
    if file is None:
        return None
    with file.open("rb") as f:
        return sum(1 for line in f if line.strip()) * stage.passes


def _open(config: RunConfig) -> list[str]:
    """What follows from results, and so is in no plan yet."""
    found = []
    if config.tune:
        found.append(
            f"tuning: {config.tune} trials of each of {len(config.methods)} methods, a training and its measurement each"
        )
    if config.curve:
        found.append(
            f"curves of {', '.join(config.curve_methods())}: a training each, measured after each of {len(config.curve.steps)} steps"
        )
    if config.relearn and "attack" in config.stages:
        models_ = (1 + len(config.methods)) * len(config.seeds)
        found.append(
            f"relearning: {models_ * len(config.relearn.kinds)} trainings, measured after each of {len(config.relearn.steps)} steps"
        )
    return found


def show(found: Forecast, as_json: bool) -> None:
    """Print the forecast: a table, or JSON."""
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.model}: {found.parameters / 1e6:,.1f} M parameters, {found.machine}")
    for name in ("stage", "jobs", "done", "to do", "expected"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for line in found.lines:
        said = _time(line.seconds) + (" (from another size)" if line.scaled else "")
        if line.unknown:
            said = f"{said} + {line.unknown} unknown" if line.seconds else "unknown"
        table.add_row(line.stage, str(line.jobs), str(line.done), str(line.jobs - line.done), said)
    Console().print(table)
    n = sum(line.jobs - line.done for line in found.lines)
    print(f"{n} jobs to do: {_time(found.work)} one after another, {_time(found.seconds)} on {found.workers} workers")
    for text in found.open:
        print(f"not in it: {text}")
    if found.unknown:
        print(
            f"{found.unknown} jobs are of a kind that was never measured here: run a little of it first"
            " (the same command with --limit 20), then ask again"
        )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
