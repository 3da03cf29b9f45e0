"""Jobs that depend on earlier results: vetting of the forget set, training curves, and relearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wpn_bench.analysis import metric_rows
from wpn_bench.analysis.curve_rows import curve_rows
from wpn_bench.attacks.base import RelearnKind
from wpn_bench.core.progress import Reporter
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.refusals import detector, detector_params
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.pipeline.plan import Plan, Target, measurements, model_label, path_of, snapshots_of
from wpn_bench.pipeline.planner import Planner
from wpn_bench.prompts.items import put_prompts, read_items
from wpn_bench.runs.files import BASE
from wpn_bench.unlearn.references import without_refusals


def vet_forget_set(planner: Planner, executor: Executor) -> tuple[Inputs, dict[str, Outcome]]:
    """Remove the harmless responses of the forget set that the judge calls harmful (see `unlearn/vet.py`).

    Args:
        planner: Plans the job, from the original inputs.
        executor: Executes it.

    Returns:
        The inputs with the vetted forget set and a note of what was removed, and the outcomes of the jobs.

    Raises:
        UserError: The judge calls every harmless response harmful.
        JobFailed: The job failed.
    """
    config, inputs = planner.config, planner.inputs
    if not config.vet or not config.methods:
        return inputs, {}
    job = planner.vetting()
    before = inputs.forget.items
    outcomes = executor.run([job])
    items = tuple(read_items(path_of(job, outcomes)))
    if not items:
        raise UserError(
            f"the judge {config.judge} calls every harmless reference of the forget set {inputs.forget.name!r} harmful",
            "check the file (are the columns swapped?), or train on it anyway with `vet: false` in a --config file",
        )
    references = sum(len(i.harmless) for i in before)
    lost = references - sum(len(i.harmless) for i in items)
    if not lost:
        return inputs, outcomes
    note = (
        f"{lost} of {references} harmless references of {inputs.forget.name} are harmful by the"
        f" judge and were not trained on ({len(before) - len(items)} items have none left and were dropped)"
    )
    executor.reporter.note(f"note: {note}")
    forget = replace(inputs.forget, items=items)
    return replace(inputs, forget=forget, notes=(*inputs.notes, note)), outcomes


def select_references(planner: Planner, reporter: Reporter) -> Inputs:
    """Choose the harmless references to train on: leave out refusals, as `refusing_references` says.

    Everything else, such as the calibration of coherence, still uses the whole forget set.

    Args:
        planner: Has the settings, and the inputs with the vetted forget set.
        reporter: Is told how many references are left out.

    Returns:
        The inputs with the items to train on (`trained_on`) and a note on their number.

    Raises:
        UserError: No item would remain.
    """
    config, inputs = planner.config, planner.inputs
    wanted = config.refusing_references
    if wanted == "keep" or not config.methods:
        return inputs
    detect = detector(detector_params(config.refusals).get("refusals"))
    before = (inputs.trained_on or inputs.forget).items
    items = without_refusals(before, detect, keep_last=wanted == "avoid")
    name = inputs.forget.name
    if not items:
        raise UserError(
            f"every harmless reference of the forget set {name!r} is a refusal, so none is left to train on",
            "set `refusing_references: avoid` or `keep` in the --config file",
        )
    references = sum(len(item.harmless) for item in before)
    left_out = references - sum(len(item.harmless) for item in items)
    note = f"{left_out} of {references} harmless references of {name} are refusals and are not trained on"
    if len(items) < len(before):
        note += f" ({len(before) - len(items)} of {len(before)} items have no other reference and are left out)"
    if wanted == "avoid":
        only = sum(
            all(detect(item.request, text)["refusal"] for text in item.harmless) for item in items if item.harmless
        )
        note += f"; {only} of {len(before)} items have only refusals, which stay"
    reporter.note(f"note: {note}")
    return replace(inputs, trained_on=replace(inputs.forget, items=items), notes=(*inputs.notes, note))


@dataclass(frozen=True)
class FollowUpResults:
    """Results of jobs that follow the main measurements: the rows of each model, the jobs, and their outcomes."""

    by_model: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


def measure_curves(planner: Planner, executor: Executor) -> FollowUpResults:
    """Train the methods of the training curve once more, and measure the model after some of the steps.

    This is a separate training, so that the models of the run have the same digest with and without a curve.

    Args:
        planner: Plans the jobs, from the tuned configuration.
        executor: Executes them.

    Returns:
        The curves, the jobs and their outcomes.
    """
    config = planner.config
    inputs = replace(planner.inputs, further=())  # the chart shows only the deciding judge
    targets = [(suite, s) for suite, s in inputs.sets if suite == "harmless"][:1]
    if config.curve is None or not (targets or inputs.tasks):
        return FollowUpResults()
    planner = replace(planner, inputs=inputs)
    limit = min(config.curve.limit, config.limit or config.curve.limit)
    heads = [(suite, s.head(limit)) for suite, s in targets]
    sets = [(suite, head, put_prompts(planner.store, head)) for suite, head in heads]
    every = Plan()
    for seed in config.seeds:
        for name in config.curve_methods():
            last = config.method_config(name).steps
            kept = [step for step in config.curve.steps if 0 < step < last]
            label = f"{model_label(name, seed)}: train for the curve"
            every.trained[name, seed] = every.add(name, replace(planner.training(name, seed, kept), label=label))
    outcomes = executor.run(every.jobs)
    planner = replace(planner.calibrated(every) if sets else planner, config=config.model_copy(update={"limit": limit}))
    points: dict[str, dict[tuple[int, int], Plan]] = {name: {} for name in config.curve_methods()}
    for (name, seed), job in every.trained.items():
        path = outcomes[job.digest].path
        if path is None:
            continue
        at: dict[int, External] = {0: planner.base} if 0 in config.curve.steps else {}
        at |= snapshots_of(path, job)
        at[int(metric_rows.training_of(path)["steps"])] = External(path, job.digest)
        for step, model in sorted(at.items()):
            plan = points[name][seed, step] = Plan()
            label = f"{model_label(name, seed)} after step {step}" if step else "base, for the curve"
            planner.measure(plan, Target(name, seed, model, label), sets)
            every.extend(plan)
    outcomes |= executor.run(every.jobs[len(every.trained) :])
    threshold = config.threshold_of(config.judge)
    rows = {
        name: curve_rows(
            {at: measurements([*plan.judged, *plan.scored], outcomes) for at, plan in of_model.items()}, threshold
        )
        for name, of_model in points.items()
    }
    return FollowUpResults(rows, every, outcomes)


def measure_relearning(
    planner: Planner, executor: Executor, trained: Mapping[tuple[str, int], External]
) -> FollowUpResults:
    """Fine-tune every model a little (the base once for each seed), and measure it after some of the steps.

    Args:
        planner: Plans the jobs.
        executor: Executes them.
        trained: The trained model of each (method, seed).

    Returns:
        The curves, the jobs and their outcomes.
    """
    config, inputs = planner.config, planner.inputs
    if config.relearn is None or inputs.attacked is None:
        return FollowUpResults()
    asked = inputs.attacked.head(config.relearn.limit)
    planner = replace(planner, inputs=replace(inputs, tasks=(), further=()))  # the chart shows only the deciding judge
    sets = [("harmless", asked, put_prompts(planner.store, asked))]
    models = {(BASE, seed): planner.base for seed in config.seeds} | dict(trained)
    every = Plan()
    started: dict[tuple[str, int, RelearnKind], Job] = {}
    for (name, seed), model in models.items():
        for kind in config.relearn.kinds:
            label = f"{model_label(name, seed)}: relearn from {kind} text"
            job = replace(planner.relearning(name, model, kind, seed), label=label)
            started[name, seed, kind] = every.add(name, job)
    outcomes = executor.run(every.jobs)
    planner = planner.calibrated(every)
    points: dict[tuple[str, RelearnKind], dict[tuple[int, int], Plan]] = {}
    for (name, seed, kind), job in started.items():
        path = outcomes[job.digest].path
        at = {0: models[name, seed]} if 0 in config.relearn.steps else {}
        at |= snapshots_of(path, job) if path else {}
        for step, model in at.items():
            plan = points.setdefault((name, kind), {})[seed, step] = Plan()
            label = f"{model_label(name, seed)} after {step} steps of relearning ({kind})"
            planner.measure(plan, Target(name, seed, model, label), sets)
            every.extend(plan)
    outcomes |= executor.run(every.jobs[len(started) :])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in models}
    threshold = config.threshold_of(config.judge)
    for (name, kind), of_kind in points.items():
        found = {at: measurements(plan.judged, outcomes) for at, plan in of_kind.items()}
        rows[name] += [{"kind": kind, **row} for row in curve_rows(found, threshold)]
    return FollowUpResults(rows, every, outcomes)
