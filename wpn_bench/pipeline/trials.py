"""Tune the methods of a run (`--tune`): plan the trials, execute their jobs, and read their measurements.

How trials are ranked and pruned is in `unlearn/tuning.py`. The store keeps all jobs of trials, so a tuning that was
interrupted, or that is repeated with more trials, continues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wpn_bench import models
from wpn_bench.analysis import benchmark_rows, metric_rows
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.config import RunConfig
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.pipeline.plan import Plan, Target, measurements, path_of
from wpn_bench.pipeline.planner import HELDOUT, Planner
from wpn_bench.pipeline.tuning_data import TuningData
from wpn_bench.prompts import PromptSet
from wpn_bench.prompts.items import put_prompts, put_texts
from wpn_bench.runs.files import BASE
from wpn_bench.unlearn import tuning
from wpn_bench.unlearn.tuning import Measured, Options, Request, Score, Tuning

FEWEST = 20  # number of prompts below which a set is not shortened at a rung
Ability = list[Measurement] | float  # of the tasks to tune on, or the loss per token of the text to tune on
_SUITE = "validation"  # suite of the prompts of trials, which is not in the results


@dataclass(frozen=True)
class Trials:
    """How every method was tuned, the jobs for this, and their outcomes. All are empty without `--tune`.

    Attributes:
        by_model: The trials of each method.
        plan: All jobs.
        outcomes: Their outcomes, by digest.
        answered: Number of the benign prompts which the base answers, and on which trials are measured.
    """

    by_model: Mapping[str, Tuning] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    answered: int = 0

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the configuration with the chosen options of each method."""
        chosen = {name: one.chosen.options for name, one in self.by_model.items()}
        return config.model_copy(update={"methods": {**config.methods, **chosen}})


def tune_methods(planner: Planner, executor: Executor) -> Trials:
    """Tune every method, in rounds of one trial each.

    Args:
        planner: Plans the jobs.
        executor: Executes them.

    Returns:
        The chosen options, the jobs and their outcomes.
    """
    config, data = planner.config, planner.inputs.tuning_data
    if not config.tune or data is None:
        return Trials()
    tasks = replace(planner, inputs=replace(planner.inputs, tasks=data.tasks, further=()))
    rounds = _Rounds(tasks, executor, data)
    rounds.measure_base()
    width = models.width_of(planner.inputs.model.path)
    # The search begins at the options in `training`, which are those of every method (such as the steps).
    given = {name: {**config.training, **options} for name, options in config.methods.items()}
    found = tuning.tune(
        given, config.tune, data.bound, width, rounds.measure, halving=config.tune_halving, over=rounds.over
    )
    return Trials(found, rounds.plan, rounds.outcomes, len(rounds.benign.items) if rounds.benign else 0)


def plan_configured(planner: Planner) -> dict[str, Plan]:
    """Plan the trial of each method as it is configured, trained to its end, to forecast the cost of tuning.

    Args:
        planner: Plans the jobs. All benign prompts count, because it is not known yet which of them the base answers.

    Returns:
        The jobs of the trial, by method. It is empty without `--tune`.
    """
    data = planner.inputs.tuning_data
    if not planner.config.tune or data is None:
        return {}
    sets = [one for one in (data.prompts, data.benign) if one]
    texts = put_texts(planner.store, data.texts) if data.texts else None
    planner = replace(planner, inputs=replace(planner.inputs, tasks=data.tasks, further=())).calibrated(Plan())
    plans = {}
    for name in planner.config.methods:
        plan = plans[name] = Plan()
        target = Target(name, tuning.SEED, plan.add(name, planner.training(name, tuning.SEED)), name)
        planner.measure(plan, target, [(_SUITE, one, put_prompts(planner.store, one)) for one in sets])
        if texts is not None:
            planner.measure_by(HELDOUT, plan, target, heldout=texts)
    return plans


class _Rounds:
    """Executes the jobs of trials, and reads their measurements.

    Attributes:
        plan: All jobs so far.
        outcomes: Their outcomes, by digest.
        benign: The benign prompts which the base answers; None if there are none.
    """

    def __init__(self, planner: Planner, executor: Executor, data: TuningData) -> None:
        self.plan = Plan()
        self.outcomes: dict[str, Outcome] = {}
        self.benign: PromptSet | None = None
        self._planner, self._executor, self._data = planner, executor, data
        self._config = planner.config
        self._texts = put_texts(planner.store, data.texts) if data.texts else None
        self._ability_of_base: Ability | None = None

    def measure_base(self) -> None:
        """Measure the ability of the base, and find the benign prompts that it answers."""
        planner = self._planner.calibrated(self.plan)
        target = Target(BASE, None, planner.base, "tune, base model")
        self._measure(planner, self.plan, target, [])
        if self._data.benign:
            asked = [(_SUITE, self._data.benign, put_prompts(planner.store, self._data.benign))]
            replace(planner, inputs=replace(planner.inputs, tasks=())).measure(self.plan, target, asked)
        self.outcomes |= self._executor.run(self.plan.jobs)
        self._ability_of_base = self._ability(self.plan)
        if self._data.benign:
            answered = self._answered(self.plan)
            items = tuple(item for item in self._data.benign.items if item.id in answered)
            self.benign = replace(self._data.benign, items=items) if items else None
            note = f"the base answers {len(items)} of {len(self._data.benign.items)} benign prompts to tune on"
            self._executor.reporter.note(
                f"note: {note}" + ("" if items else ", so that refusals do not count against a trial")
            )
        assert isinstance(planner.bound, Job)
        # This job has finished. As an external input, it is not waited for in the rounds.
        self._planner = replace(planner, bound=External(path_of(planner.bound, self.outcomes), planner.bound.digest))

    def measure(self, numbers: Mapping[str, int], requests: Mapping[str, Request]) -> dict[str, Measured | str]:
        """Train and measure one trial of each method as far as it is requested (see `tuning.Measure`)."""
        plans: dict[str, Plan] = {}
        for name, asked in requests.items():
            planner, plan = self._of(name, asked.options), Plan()
            label = f"tune {name}, trial {numbers[name]}/{(self._config.tune or 1) - 1}"
            label += f" to step {asked.until}" if asked.until else ""
            job = replace(planner.training(name, tuning.SEED, until=asked.until), label=f"{label}: train")
            plan.trained[name, tuning.SEED] = plan.add(name, job)
            sets = [_shortened(one, asked.share) for one in (self._data.prompts, self.benign) if one]
            self._measure(planner, plan, Target(name, tuning.SEED, job, label), sets)
            plans[name] = plan
        done = self._executor.run([job for plan in plans.values() for job in plan.jobs])
        self.outcomes.update(done)
        for plan in plans.values():
            self.plan.extend(plan)
        return {name: self._measured(plan) for name, plan in plans.items()}

    def over(self, name: str, options: Options) -> None:
        """Remove the checkpoints of a trial that is not trained further."""
        whole = self._of(name, options).training(name, tuning.SEED)
        self._planner.store.clear_scratch(whole.stage, whole.digest)

    def _of(self, name: str, options: Options) -> Planner:
        """Return a planner for a method with the options of a trial."""
        return replace(self._planner, config=self._config.model_copy(update={"methods": {name: options}}))

    def _measure(self, planner: Planner, plan: Plan, target: Target, sets: list[PromptSet]) -> None:
        planner.measure(plan, target, [(_SUITE, one, put_prompts(planner.store, one)) for one in sets])
        if self._texts is not None:
            planner.measure_by(HELDOUT, plan, target, heldout=self._texts)

    def _measured(self, plan: Plan) -> Measured | str:
        """Return the measurements of one trial, or the reason why it could not be measured."""
        for job in plan.jobs:
            if self.outcomes[job.digest].path is None:
                return self.outcomes[job.digest].reason or "failed"
        threshold = self._config.threshold_of(self._config.judge)
        rows = metric_rows.prompt_rows(self._samples(plan, self._data.prompts.name), threshold)
        rates = {row.metric: row.value for row in rows}
        harmless, coherent = rates["harmless_rate"], rates["coherent_harmless_rate"]
        if harmless is None or coherent is None or harmless != harmless:
            return "no answer could be judged"
        (job,) = plan.trained.values()
        about = metric_rows.training_of(path_of(job, self.outcomes))
        score = Score(coherent, harmless, self._ability_change(plan), self._share_answered(plan))
        return Measured(score, int(about["steps"]), ended=not about.get("paused", False))

    def _share_answered(self, plan: Plan) -> float | None:
        if self.benign is None:
            return None
        asked = self._samples(plan, self.benign.name)["item_id"].nunique()
        return len(self._answered(plan)) / asked

    def _answered(self, plan: Plan) -> set[str]:
        assert self._data.benign is not None
        threshold = self._config.threshold_of(self._config.judge)
        return metric_rows.answered_items(self._samples(plan, self._data.benign.name), threshold)

    def _samples(self, plan: Plan, name: str) -> Any:
        judged = [one for one in plan.judged if one.set == name]
        for one in judged:
            path_of(one.job, self.outcomes)
        return metric_rows.read_samples(
            measurements(judged, self.outcomes), self._config.threshold_of(self._config.judge)
        )

    def _ability_change(self, plan: Plan) -> float:
        """Return how much the ability of a trial differs from that of base, in the unit of the bound."""
        before, after = self._ability_of_base, self._ability(plan)
        if isinstance(before, list) and isinstance(after, list):
            return benchmark_rows.ability_change(before, after)
        assert isinstance(before, float)
        assert isinstance(after, float)
        return after - before

    def _ability(self, plan: Plan) -> Ability:
        """Return the measurements of the tuning tasks, or the loss per token of the tuning text."""
        texts = plan.measured.get(HELDOUT, [])
        for planned in (*plan.scored, *texts):
            path_of(planned.job, self.outcomes)
        if plan.scored:
            return measurements(plan.scored, self.outcomes)
        (text,) = measurements(texts, self.outcomes)
        return metric_rows.token_loss(text)


def _shortened(prompts: PromptSet, share: float) -> PromptSet:
    """Return the first prompts of a set: a share of it, but at least `FEWEST` if it has as many."""
    return prompts.head(max(math.ceil(len(prompts.items) * share), FEWEST))
