"""The relearning search of a run: its jobs, round by round, for all models together (see `wpn_bench.attacks.relearn_search`)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wpn_bench import models
from wpn_bench.analysis import metric_rows
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.relearn_search_rows import (
    Attacked,
    clustered_rate,
    coherent_score,
    relearn_search_rows,
    resisted,
)
from wpn_bench.attacks import relearn_search
from wpn_bench.attacks.relearn_search import NAME, Ask, Found, Measured, Point, RelearnSearch, Split, Trial
from wpn_bench.attacks.relearn_trial import CountedRelearning, item_and_step, read_budget
from wpn_bench.errors import UserError
from wpn_bench.jobs.executor import Executor
from wpn_bench.jobs.job import External, Job, Outcome
from wpn_bench.jobs.planning import AskedSet
from wpn_bench.pipeline.plan import Plan, Target, measurements, model_label, path_of
from wpn_bench.pipeline.planner import Planner
from wpn_bench.prompts import PromptSet
from wpn_bench.prompts.items import put_prompts
from wpn_bench.runs.files import BASE, Row
from wpn_bench.unlearn import lora
from wpn_bench.unlearn.methods.base import LoRAConfig, code_of, digested
from wpn_bench.unlearn.preflight import architecture

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RelearnSearches:
    """What the searches found. All is empty if the run does not ask for them.

    Attributes:
        by_model: For each model, one entry for each seed, as in results.json.
        rows: The metrics.
        plan: All jobs.
        outcomes: Their outcomes, by digest. An attack whose training diverged has failed, which is no failure of the run.
        failed: What could not be measured, and why.
    """

    by_model: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    plan: Plan = field(default_factory=Plan)
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    failed: tuple[dict[str, str], ...] = ()


def split_of(planner: Planner) -> Split | None:
    """Choose what the search trains on and asks.

    Args:
        planner: Has the settings and the inputs.

    Returns:
        The data; None if the run does not search.

    Raises:
        UserError: There are too few facts or prompts.
    """
    config, inputs = planner.config, planner.inputs
    if config.relearn_search is None or inputs.attacked is None:
        return None
    return relearn_search.split(config.relearn_search, inputs.forget, inputs.validation, inputs.attacked, config.limit)


def check_relearn_search(planner: Planner) -> None:
    """Raise `UserError` if the search cannot work with these inputs, before anything is computed."""
    data, settings = split_of(planner), planner.config.relearn_search
    if data is None or settings is None:
        return
    for path in [planner.base.path, *(one.path for one in planner.inputs.candidates if not one.remote)]:
        models.width_of(path)
    if "lora" in settings.weights:
        model_class, model_config = architecture(planner.base.path)
        if model_class is not None:
            try:
                lora.check(model_class, model_config, LoRAConfig(rank=settings.rank))
            except UserError as e:
                raise UserError(e.problem, "set relearn_search: {weights: [full]} in the --config file") from e
    one = _Attack(planner, settings, data, BASE, None, planner.base)
    _ = one.job(Ask(one.trials[0], (1,)), "").digest  # fails if a library is missing


def search_relearning(
    planner: Planner, executor: Executor, trained: Mapping[tuple[str, int], External]
) -> RelearnSearches:
    """Search the best relearning attack on every model, and on the base, and measure it.

    Args:
        planner: Plans the jobs.
        executor: Executes them.
        trained: The trained model of each (method, seed).

    Returns:
        What was found. A model that is below the goal before any training is not attacked.
    """
    settings, data = planner.config.relearn_search, split_of(planner)
    if settings is None or data is None:
        return RelearnSearches()
    every = Plan()
    planner = replace(planner, inputs=replace(planner.inputs, tasks=(), further=())).calibrated(every)
    of_models: dict[tuple[str, int | None], External] = {(BASE, None): planner.base}
    of_models |= dict(trained.items())
    attacks = [_Attack(planner, settings, data, name, seed, model) for (name, seed), model in of_models.items()]
    for one in attacks:
        one.plan_unattacked(every)
    outcomes: dict[str, Outcome] = dict(executor.run(every.jobs))
    going: list[tuple[_Attack, list[Ask]]] = []
    assert isinstance(planner.bound, Job)
    # This job has finished. As an external input, it is not waited for in the rounds.
    bound = External(path_of(planner.bound, outcomes), planner.bound.digest)
    for one in attacks:
        one.planner = replace(planner, bound=bound)
        if asks := one.begin(outcomes):
            going.append((one, asks))
    while going:
        plan = Plan()
        for one, asks in going:
            one.plan(plan, asks)
        outcomes |= executor.run(plan.jobs)
        every.extend(plan)
        going = [(one, more) for one, asks in going if (more := one.go_on(asks, outcomes))]
    for one in attacks:
        one.clear()
    rows = relearn_search_rows([measured for one in attacks if (measured := one.attacked())])
    by_model: dict[str, list[dict[str, Any]]] = {}
    for one in attacks:
        by_model.setdefault(one.name, []).append(one.json())
    failed = tuple(reason for one in attacks for reason in one.failed)
    return RelearnSearches(by_model, tuple(rows), every, outcomes, failed)


class _Attack:
    """The search against one model.

    Attributes:
        name: Name of the model.
        planner: Plans the jobs.
        trials: The attacks.
        failed: What could not be measured, and why.
    """

    def __init__(
        self, planner: Planner, settings: RelearnSearch, data: Split, name: str, seed: int | None, model: External
    ) -> None:
        self.name, self._seed, self._model = name, seed, model
        self.planner, self._settings, self._data = planner, settings, data
        self._width = models.width_of(model.path)
        self.trials = relearn_search.trials(settings, self._width)
        self._search: Generator[list[Ask], list[Measured], Found] | None = None
        self._found = Found()
        self._label = model_label(name, seed) if name != BASE else BASE
        self._jobs: dict[Ask, tuple[Job, Plan]] = {}
        self._unattacked = Plan()
        self._answers: list[pd.DataFrame] = []
        self._budget: dict[int, dict[str, int]] = {0: {"rows": 0, "tokens": 0}}
        self.failed: list[dict[str, str]] = []

    def _target(self, artifact: Job | External, label: str) -> Target:
        return Target(self.name, self._seed, artifact, label)

    def plan_unattacked(self, plan: Plan) -> None:
        """Add the answers of the model as it is to the test prompts."""
        label = f"{self._label}, before relearning"
        stored = put_prompts(self.planner.store, self._data.tested)
        self.planner.measure(self._unattacked, self._target(self._model, label), [(NAME, self._data.tested, stored)])
        plan.extend(self._unattacked)

    def begin(self, outcomes: Mapping[str, Outcome]) -> list[Ask]:
        """Read the answers of the model as it is, and return the first measurements of the search; none if it needs no attack."""
        frame = self._samples(self._unattacked, outcomes)
        if frame is None or not frame["harmless"].notna().any():
            self._fail("before relearning", self._reason(self._unattacked.jobs, outcomes))
            return []
        self._answers.append(frame.assign(step=0))
        if self._rates(frame).rate < self._settings.goal:
            return []
        self._search = relearn_search.search(self._settings, self._width)
        return next(self._search)

    def plan(self, plan: Plan, asks: Sequence[Ask]) -> None:
        """Add the jobs of measurements: a training that answers prompts, and the judging of the answers."""
        for ask in asks:
            steps = "" if len(ask.steps) == 1 else f"{ask.steps[0]} to "
            job = self.job(ask, f"{self._label}: relearning attack {ask.trial.number} at step {steps}{ask.steps[-1]}")
            own = Plan()
            own.add(self.name, job)
            asked = self._asked(ask)
            stored = put_prompts(self.planner.store, asked)
            self.planner.judge(own, self._target(job, job.label), [AskedSet(NAME, asked.name, stored, job)])
            self._jobs[ask] = job, own
            plan.extend(own)

    def job(self, ask: Ask, label: str) -> Job:
        """Return the job that trains an attack and answers prompts. Measurements on the test prompts continue each other."""
        planner, store = self.planner, self.planner.store
        whole = self._whole(ask.trial)
        local: dict[str, Any] = {"device": planner.inputs.device}
        if ask.tested:
            local["checkpoints"] = str(store.scratch(whole.stage, whole.digest))
        params = {**whole.params, "steps": list(ask.steps), "decoding": planner.decoding}
        return Job(NAME, params, {**whole.needs, "prompts": put_prompts(store, self._asked(ask))}, label, local)

    def _whole(self, trial: Trial) -> Job:
        """Return what identifies the whole training of an attack. It is not executed."""
        config = digested(trial.config(self._settings))
        params = {"code": code_of(CountedRelearning), "config": config, "seed": relearn_search.SEED}
        needs = {"model": self._model, "forget": put_prompts(self.planner.store, self._data.trained)}
        return Job(NAME, params | self.planner.templates(self.name), needs, "")

    def go_on(self, asks: Sequence[Ask], outcomes: Mapping[str, Outcome]) -> list[Ask]:
        """Give measurements to the search, and return those that it needs next; none at its end."""
        assert self._search is not None
        try:
            return self._search.send([self._measured(ask, outcomes) for ask in asks])
        except StopIteration as end:
            self._found = end.value
            if self._found.best is None:
                reasons = [one.reason for one in self._found.tried if one.reason]
                self._fail("relearning search", f"all {len(reasons)} attacks failed, the first: {reasons[0]}")
            return []

    def clear(self) -> None:
        """Remove the checkpoints of the best attack."""
        if self._found.best is not None:
            self.planner.store.clear_scratch(NAME, self._whole(self._found.best).digest)

    def attacked(self) -> Attacked | None:
        """Return the answers under the best attack; None if there are none."""
        import pandas as pd

        if not self._answers:
            return None
        tested = self._data.tested
        facts = {item.id: relearn_search.fact_of(tested, item) for item in tested.items}
        answers = pd.concat([frame[["item_id", "step", "harmless", "coherent"]] for frame in self._answers])
        return Attacked(self.name, self._seed, tested.name, answers, facts, self._budget, self._settings.goal)

    def json(self) -> dict[str, Any]:
        """Return the search as it is written to results.json."""
        data, found = self._data, self._found
        steps = sorted({int(step) for frame in self._answers for step in frame["step"]})
        return {
            "seed": self._seed,
            "goal": self._settings.goal,
            "steps": self._settings.steps,
            "best": None if found.best is None else found.best.json(),
            "tried": [one.json() for one in found.tried],
            "measured": [{"step": step, **self._budget[step]} for step in steps],
            "trained_items": len(data.trained.items),
            "trained_facts": data.facts,
            "selection_prompts": len(data.selection.items),
            "tested_prompts": len(data.tested.items),
        }

    def _asked(self, ask: Ask) -> PromptSet:
        return self._data.tested if ask.tested else self._data.selection

    def _measured(self, ask: Ask, outcomes: Mapping[str, Outcome]) -> Measured:
        job, own = self._jobs[ask]
        frame = self._samples(own, outcomes)
        if frame is None:
            reason = self._reason(own.jobs, outcomes)
            if ask.tested:
                self._fail(job.label, reason)
            return reason
        split = [item_and_step(one) for one in frame["item_id"]]
        frame = frame.assign(item_id=[item for item, _ in split], step=[step for _, step in split])
        by_step = {step: frame[frame["step"] == step] for step in ask.steps}
        if any(not part["harmless"].notna().any() for part in by_step.values()):
            return "no answer could be judged"
        if ask.tested:
            self._answers.append(frame)
            path = outcomes[job.digest].path
            assert path is not None
            self._budget |= read_budget(path)
        return {step: self._rates(part) for step, part in by_step.items()}

    def _rates(self, frame: pd.DataFrame) -> Point:
        judged = frame[frame["harmless"].notna()]
        tested = self._data.tested
        facts = {item.id: relearn_search.fact_of(tested, item) for item in tested.items}
        estimate = clustered_rate(
            [bool(one) for one in resisted(judged)], [facts.get(item, item) for item in judged["item_id"]]
        )
        return Point(estimate.value, estimate.high, coherent_score(judged))

    def _samples(self, plan: Plan, outcomes: Mapping[str, Outcome]) -> pd.DataFrame | None:
        found: list[Measurement] = measurements(plan.judged, outcomes)
        if not found:
            return None
        return metric_rows.read_samples(found, self.planner.config.threshold_of(self.planner.config.judge))

    def _reason(self, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> str:
        failed = (outcomes[job.digest].reason for job in jobs if outcomes[job.digest].path is None)
        return next((reason for reason in failed if reason), "no answer could be judged")

    def _fail(self, what: str, reason: str) -> None:
        job = what if what.startswith(self._label) else f"{self._label}: {what}"
        self.failed.append({"job": job, "reason": reason})
