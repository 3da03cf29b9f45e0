"""Jobs that depend on earlier results: vetting, tuning, curves, relearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wpn_bench import models
from wpn_bench.analysis import metric_rows
from wpn_bench.attacks.base import RelearnKind
from wpn_bench.config import RunConfig
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.store import Store
from wpn_bench.pipeline.inputs import Inputs
from wpn_bench.pipeline.planner import (
    Plan,
    _base,
    _calibrated,
    _done,
    _found,
    _measure,
    _relearn_job,
    _snapshots,
    _train_job,
    _vet_job,
    _who,
)
from wpn_bench.prompts.items import put_prompts, put_texts, read_items
from wpn_bench.runs.files import BASE
from wpn_bench.unlearn import tuning
from wpn_bench.unlearn.tuning import Options, Score, Tuning


def vetted(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> tuple[Inputs, dict[str, Outcome]]:
    """The inputs with the forget set as it is trained on (see `unlearn/vet.py`) and a note of what was dropped; and what
    was done for it."""
    if not config.vet or not config.methods:
        return inputs, {}
    job = _vet_job(config, inputs, store)
    before = inputs.forget.items
    outcomes = executor.run([job])
    items = tuple(read_items(_done(job, outcomes)))
    if not items:
        raise UserError(
            f"the judge {config.judge} calls every harmless reference of the forget set {inputs.forget.name!r} harmful",
            "look at the file (are the columns swapped?), or train on it all the same with `vet: false` in --config",
        )
    lost = sum(len(i.harmless) for i in before) - sum(len(i.harmless) for i in items)
    if not lost:
        return inputs, outcomes
    note = (
        f"{lost} of {sum(len(i.harmless) for i in before)} harmless references of {inputs.forget.name} are harmful by the"
        f" judge and were not trained on ({len(before) - len(items)} items have none left and were dropped)"
    )
    executor.reporter.note(f"note: {note}")
    forget = replace(inputs.forget, items=items)
    return replace(inputs, forget=forget, notes=(*inputs.notes, note)), outcomes


@dataclass(frozen=True)
class Trials:
    """How every method was tuned (nothing without `--tune`), and what it took."""

    by_model: Mapping[str, Tuning] = field(default_factory=dict)
    made: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)

    def applied(self, config: RunConfig) -> RunConfig:
        """The configuration with each method's chosen options."""
        return config.model_copy(update={"methods": {**config.methods, **self._chosen()}})

    def _chosen(self) -> dict[str, Options]:
        return {name: one.chosen.options for name, one in self.by_model.items()}


def tuned(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> Trials:
    """Tune every method: rounds of one trial each, whose jobs the store keeps as any others."""
    ground = inputs.ground
    if not config.tune or ground is None:
        return Trials()
    seen = replace(inputs, tasks=ground.tasks, further=())
    asked = [("validation", ground.prompts, put_prompts(store, ground.prompts))]
    texts = put_texts(store, ground.texts) if ground.texts else None
    every = Plan()
    bound = _calibrated(config, inputs, store, every)
    _measure(config, seen, every, BASE, None, _base(inputs), [], bound, texts, "tune, base model")
    a_trial = 1 + 2 * len(asked) + len(ground.tasks) + (texts is not None)
    executor.reporter.plan(len(every.jobs) + config.tune * len(config.methods) * a_trial)
    outcomes = executor.run(every.jobs, announce=False)
    before = _ability(every, outcomes)
    # Done, so that the rounds do not wait for it.
    known = External(_done(bound, outcomes), bound.digest)

    def measure(number: int, options: Mapping[str, Options]) -> dict[str, Score | str]:
        trial = config.model_copy(update={"methods": dict(options)})
        plans = {}
        for name in options:
            made = plans[name] = Plan()
            who = f"tune {name}, trial {number}/{(config.tune or 1) - 1}"
            train = replace(_train_job(trial, inputs, store, name, tuning.SEED), label=f"{who}: train")
            _measure(trial, seen, made, name, tuning.SEED, made.add(name, train), asked, known, texts, who)
        done = executor.run([job for made in plans.values() for job in made.jobs], announce=False)
        outcomes.update(done)
        for made in plans.values():
            every.jobs += made.jobs
            every.owner |= made.owner
        return {name: _score(config, made, done, before) for name, made in plans.items()}

    width = models.width_of(inputs.model.path)
    # What `training` says of every method decides where the search begins (the rate of adapters, the steps).
    given = {name: {**config.training, **options} for name, options in config.methods.items()}
    found = tuning.tune(given, config.tune, ground.bound, width, measure)
    return Trials(found, every, outcomes)


def _score(config: RunConfig, made: Plan, outcomes: Mapping[str, Outcome], before: float) -> Score | str:
    """What one trial measured, or why it could not be."""
    for job in made.jobs:
        if outcomes[job.digest].path is None:
            return outcomes[job.digest].reason or "failed"
    threshold = config.threshold_of(config.judge)
    samples = metric_rows.read_samples(_found(made.judged, outcomes), threshold)
    rates = {r.metric: r.value for r in metric_rows.prompt_rows(samples, threshold)}
    harmless, coherent = rates["harmless_rate"], rates["coherent_harmless_rate"]
    if harmless is None or coherent is None or harmless != harmless:
        return "no answer could be judged"
    return Score(coherent, harmless, _ability(made, outcomes) - before)


def _ability(made: Plan, outcomes: Mapping[str, Outcome]) -> float:
    """Macro accuracy of the tasks to tune on, or the token loss of the text."""
    for planned in (*made.scored, *made.read):
        _done(planned.job, outcomes)
    if made.scored:
        return metric_rows.macro_accuracy(_found(made.scored, outcomes))
    (text,) = _found(made.read, outcomes)
    return metric_rows.token_loss(text)


@dataclass(frozen=True)
class Drawn:
    """Curves over training steps: rows by model, and what they took."""

    by_model: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    made: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


def curves(config: RunConfig, inputs: Inputs, store: Store, executor: Executor) -> Drawn:
    """Train the methods of the curve once more, keeping the model at some steps, and measure each of these.

    A training of its own, so that the models of the run have the same digest with and without a curve.
    """
    inputs = replace(inputs, further=())  # what decides is what is drawn
    targets = [(suite, s) for suite, s in inputs.sets if suite == "harmless"][:1]
    if config.curve is None or not (targets or inputs.tasks):
        return Drawn()
    small = config.model_copy(update={"limit": min(config.curve.limit, config.limit or config.curve.limit)})
    sets = [(suite, head, put_prompts(store, head)) for suite, s in targets for head in [s.head(small.limit)]]
    every = Plan()
    for seed in config.seeds:
        for name in config.curve_methods():
            last = config.method_config(name).steps
            kept = [step for step in config.curve.steps if 0 < step < last]
            job = _train_job(config, inputs, store, name, seed, kept)
            label = f"{name} (seed {seed}): train for the curve"
            every.trained[name, seed] = every.add(name, replace(job, label=label))
    outcomes = executor.run(every.jobs)
    bound = _calibrated(config, inputs, store, every) if sets else None
    points: dict[str, dict[tuple[int, int], Plan]] = {name: {} for name in config.curve_methods()}
    for (name, seed), job in every.trained.items():
        path = outcomes[job.digest].path
        if path is None:
            continue
        at: dict[int, External] = {0: _base(inputs)} if 0 in config.curve.steps else {}
        at |= _snapshots(path, job)
        at[int(metric_rows.training_of(path)["steps"])] = External(path, job.digest)
        for step, model in sorted(at.items()):
            made = points[name][seed, step] = Plan()
            who = f"{name} (seed {seed}) after step {step}" if step else "base, for the curve"
            _measure(small, inputs, made, name, seed, model, sets, bound, None, who)
            every.jobs += made.jobs
            every.owner |= made.owner
    outcomes |= executor.run(every.jobs[len(every.trained) :])
    rows = {
        name: metric_rows.curve_rows(
            {at: _found([*made.judged, *made.scored], outcomes) for at, made in of_model.items()},
            config.threshold_of(config.judge),
        )
        for name, of_model in points.items()
    }
    return Drawn(rows, every, outcomes)


def relearning(
    config: RunConfig,
    inputs: Inputs,
    store: Store,
    executor: Executor,
    made: Plan,
    before: Mapping[str, Outcome],
) -> Drawn:
    """Fine-tune every model that there is a little, the base once a seed, and measure it after some of the steps."""
    if config.relearn is None or inputs.attacked is None:
        return Drawn()
    asked = inputs.attacked.head(config.relearn.limit)
    inputs = replace(inputs, tasks=(), further=())  # what decides is what is drawn
    sets = [("harmless", asked, put_prompts(store, asked))]
    models = {(BASE, seed): _base(inputs) for seed in config.seeds}
    for key, training in made.trained.items():
        if (path := before[training.digest].path) is not None:
            models[key] = External(path, training.digest)
    every = Plan()
    started: dict[tuple[str, int, RelearnKind], Job] = {}
    for (name, seed), model in models.items():
        for kind in config.relearn.kinds:
            job = _relearn_job(config, inputs, store, model, kind, seed)
            label = f"{_who(name, seed)}: relearn from {kind} text"
            started[name, seed, kind] = every.add(name, replace(job, label=label))
    outcomes = executor.run(every.jobs)
    bound = _calibrated(config, inputs, store, every)
    points: dict[tuple[str, RelearnKind], dict[tuple[int, int], Plan]] = {}
    for (name, seed, kind), job in started.items():
        path = outcomes[job.digest].path
        at = {0: models[name, seed]} if 0 in config.relearn.steps else {}
        at |= _snapshots(path, job) if path else {}
        for step, model in at.items():
            point = points.setdefault((name, kind), {})[seed, step] = Plan()
            who = f"{_who(name, seed)} after {step} steps of relearning ({kind})"
            _measure(config, inputs, point, name, seed, model, sets, bound, None, who)
            every.jobs += point.jobs
            every.owner |= point.owner
    outcomes |= executor.run(every.jobs[len(started) :])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in models}
    for (name, kind), of_kind in points.items():
        found = {at: _found(point.judged, outcomes) for at, point in of_kind.items()}
        rows[name] += [
            {"kind": kind, **row} for row in metric_rows.curve_rows(found, config.threshold_of(config.judge))
        ]
    return Drawn(rows, every, outcomes)
