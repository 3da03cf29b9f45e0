"""Tune all methods fairly: each gets the same number of trials, and one rule ranks the trials on validation data.

Two rates are measured on validation prompts: H, the coherent-harmless rate, and A, the share of the benign prompts which
the base answers that the trained model still answers. The objective is min(H, A), so that a model that refuses everything
has 0. The constraint is a maximum loss of ability, measured on tuning data (`Bound`). `Trial.rank` orders the trials as
follows:

1. Trials that were trained to their end come before pruned ones, and failed ones last.
2. Among each of these, feasible trials come first, ordered by the objective, then by the mean of H and A.
3. Infeasible trials are ordered by how much they exceed the bound.

If two trials are equal, the one with the smaller loss of ability is better, and then the earlier one. Trial 0 is the
method with its configured options. Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) samples the other
trials with a fixed seed, so the same measurements lead to the same trials. Tuning uses no test prompts and no test
documents.

With successive halving (Jamieson & Talwalkar 2016; in the asynchronous form of Li et al. 2020, as Optuna implements it),
a trial is measured at its rungs: after a ninth and after a third of the configured steps. It goes on if it is among the
best third of the trials that reached this rung before, or if it is the best of them.

This module does not depend on jobs. `tune` gets a function that trains and measures trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from wpn_bench.unlearn.search import Drawn, Range, rounded

if TYPE_CHECKING:
    from wpn_bench.unlearn.methods.base import Method
    from wpn_bench.unlearn.study import Study


def space(kind: type[Method], options: Mapping[str, Any]) -> dict[str, Range]:
    """Choose the ranges to search.

    An option that the configuration sets is not searched, because it defines the variant of the method. A relative
    range is still searched, around the set value.

    Args:
        kind: The method.
        options: Its options in the configuration.

    Returns:
        The range of each searched option.
    """
    return {name: one for name, one in kind.search.items() if one.relative or name not in options}


def start(kind: type[Method], options: Mapping[str, Any]) -> Drawn:
    """Return the point that leaves all options of the method unchanged.

    Args:
        kind: The method.
        options: Its options in the configuration.

    Returns:
        For each searched option the factor 1 or its current value.
    """
    config = kind.Config(**options)
    return {name: 1 if one.relative else getattr(config, name) for name, one in space(kind, options).items()}


def configured(kind: type[Method], options: Mapping[str, Any], drawn: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Apply a drawn point to the options of the configuration.

    Options whose value does not change are not set, so that trial 0 has the same configuration as an untuned run.

    Args:
        kind: The method.
        options: Its options in the configuration.
        drawn: The drawn point.
        width: Hidden size of the model.

    Returns:
        The options of the trial.
    """
    config = kind.Config(**options)
    changed = dict(options)
    for name, one in space(kind, options).items():
        value = drawn[name]
        if one.relative:
            if value == 1:
                continue
            own = config.peak_lr(width) if name == "lr" else getattr(config, name)
            value = max(1, round(own * value)) if isinstance(own, int) else rounded(own * value)
        elif value == getattr(config, name):
            continue
        elif isinstance(value, float):
            value = rounded(value)
        changed[name] = value
    return changed


SEED = 0  # seed of the training of every trial
FACTOR = 3  # a rung lets the best third pass, and is a third of the next one
RUNGS = 2  # number of rungs below the end of a training

Options = dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """The maximum loss of ability of a trial.

    Attributes:
        metric: Metric that measures the ability.
        limit: Largest accepted decrease of the macro accuracy (a fraction), or increase of the loss (nats per token).
    """

    metric: Literal["macro_accuracy", "token_loss"]
    limit: float

    def loss(self, change: float) -> float:
        """Convert the change from the base model to a loss of ability, which is infinite if the change is NaN."""
        if math.isnan(change):
            return math.inf
        return -change if self.metric == "macro_accuracy" else change


@dataclass(frozen=True)
class Score:
    """The measurements of a trial.

    Attributes:
        coherent_harmless: Coherent-harmless rate on the validation prompts (H).
        harmless: Harmless rate on the validation prompts.
        ability_change: Change of the ability metric from the base model.
        answered: Share of the benign validation prompts which the base answers that the trial answers, too (A). None
            if there are no such prompts.
    """

    coherent_harmless: float
    harmless: float
    ability_change: float
    answered: float | None = None

    @property
    def objective(self) -> float:
        """Return min(H, A), or H without benign prompts."""
        return self.coherent_harmless if self.answered is None else min(self.coherent_harmless, self.answered)

    @property
    def mean(self) -> float:
        """Return the mean of H and A, or H without benign prompts."""
        return self.coherent_harmless if self.answered is None else (self.coherent_harmless + self.answered) / 2


@dataclass(frozen=True)
class Trial:
    """One training of a method.

    Attributes:
        number: Number of the trial, counted from 0.
        options: Options that differ from the method's defaults.
        searched: Values of the searched options.
        score: The last measurements; None if the trial failed.
        reason: Why it failed; None if it did not fail.
        steps: Number of optimiser steps that it was trained for.
        pruned: Whether its training was not finished, because other trials were better at a rung.
    """

    number: int
    options: Options
    searched: Options
    score: Score | None
    reason: str | None = None
    steps: int = 0
    pruned: bool = False

    def feasible(self, bound: Bound) -> bool:
        # The tolerance accepts a trial that loses exactly the limit, despite rounding errors.
        return self.score is not None and self._excess(bound) <= 1e-12

    def _excess(self, bound: Bound) -> float:
        return math.inf if self.score is None else bound.loss(self.score.ability_change) - bound.limit

    def rank(self, bound: Bound) -> tuple[int, float, float, float, int]:
        """Return the sort key of the trial. The best trial has the largest key."""
        if self.score is None:
            return 0, 0.0, 0.0, 0.0, -self.number
        loss = bound.loss(self.score.ability_change)
        group = 1 if self.pruned else 3
        if not self.feasible(bound):
            return group, -self._excess(bound), 0.0, -loss, -self.number
        return group + 1, self.score.objective, self.score.mean, -loss, -self.number

    def value(self, bound: Bound) -> float | None:
        """Return the rank among trials of the same length as one number for Optuna, or None for a failed trial.

        Optuna's pruner lets all of several equal trials pass, so that no two trials may have the same number. The parts
        of the rank are therefore added with weights that are smaller than the differences of the parts before them, if
        the rates are of 100 prompts and the ability is measured to three digits. Closer trials may change places.
        """
        if self.score is None:
            return None
        loss = bound.loss(self.score.ability_change)
        smaller = (
            -1e-9 * (loss / (1 + abs(loss)) if math.isfinite(loss) else math.copysign(1.0, loss)) - 1e-14 * self.number
        )
        if not self.feasible(bound):
            return -1.0 - min(self._excess(bound), 100.0) + smaller
        return self.score.objective + 1e-6 * self.score.mean + smaller


@dataclass(frozen=True)
class Tuning:
    """All trials of one method, and the best one (`chosen`)."""

    trials: tuple[Trial, ...]
    bound: Bound
    chosen: Trial = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chosen", max(self.trials, key=lambda t: t.rank(self.bound)))

    def json(self) -> dict[str, Any]:
        """Return the tuning as it is written to results.json."""

        def measured(trial: Trial, what: str) -> float | None:
            value = getattr(trial.score, what, None)
            return value if value is not None and math.isfinite(value) else None

        return {
            "chosen": self.chosen.number,
            "steps": sum(t.steps for t in self.trials),
            "finished": sum(t.score is not None and not t.pruned for t in self.trials),
            "trials": [
                {
                    "trial": t.number,
                    "params": t.searched,
                    "coherent_harmless_rate": measured(t, "coherent_harmless"),
                    "harmless_rate": measured(t, "harmless"),
                    "answered_rate": measured(t, "answered"),
                    "ability_change": measured(t, "ability_change"),
                    "feasible": t.feasible(self.bound),
                    "reason": t.reason,
                    "steps": t.steps,
                    "pruned": t.pruned,
                }
                for t in self.trials
            ],
        }


@dataclass(frozen=True)
class Request:
    """What is to be measured of a trial.

    Attributes:
        options: The options of the trial.
        until: Number of steps after which its training pauses; None trains to the end.
        share: Share of the validation data on which it is measured.
    """

    options: Options
    until: int | None
    share: float


@dataclass(frozen=True)
class Measured:
    """A measured trial.

    Attributes:
        score: The measurements.
        steps: Number of steps that it was trained for.
        ended: Whether its training has ended, maybe before the step at which it would pause (by a stop rule).
    """

    score: Score
    steps: int
    ended: bool


# Is called with the number of each method's trial and the request. Returns the measurements of each method, or the reason
# of a failure. Only this function takes time, so it can measure all requests at once.
Measure = Callable[[Mapping[str, int], Mapping[str, Request]], Mapping[str, Measured | str]]


def rungs_of(steps: int) -> tuple[int, ...]:
    """Return the steps after which trials of a method with `steps` configured steps are compared, without the end."""
    at = {max(1, round(steps / FACTOR**k)) for k in range(1, RUNGS + 1)}
    return tuple(sorted(at))


def tune(
    methods: Mapping[str, Mapping[str, Any]],
    trials: int,
    bound: Bound,
    width: int,
    measure: Measure,
    *,
    halving: bool = False,
    over: Callable[[str, Options], None] = lambda name, options: None,
) -> dict[str, Tuning]:
    """Tune methods. Round k consists of trial k of every method, so the trials of a round can run in parallel.

    If no trial of a method was finished, because the ones that passed the rungs failed later, its best pruned trial is
    trained to the end. If no finished trial is feasible, this is done once with the best pruned trial that was feasible.

    Args:
        methods: Options of each method in the configuration.
        trials: Number of trials of each method.
        bound: The maximum loss of ability.
        width: Hidden size of the model.
        measure: Trains and measures trials.
        halving: Whether trials are pruned at the rungs. If not, all are trained to the end.
        over: Called with the method and the options of a trial that is not trained further.

    Returns:
        The trials of each method.
    """
    from wpn_bench.unlearn.study import Study

    studies = {name: Study(name, options, width, pruning=halving) for name, options in methods.items()}
    found: dict[str, list[Trial]] = {name: [] for name in methods}

    def run(courses: dict[str, _Course]) -> dict[str, Trial]:
        ended: dict[str, Trial] = {}
        while len(ended) < len(courses):
            going = {name: one for name, one in courses.items() if name not in ended}
            numbers = {name: one.number for name, one in going.items()}
            results = measure(numbers, {name: one.request() for name, one in going.items()})
            for name, one in going.items():
                trial = one.take(results[name], bound)
                if trial is not None:
                    ended[name] = trial
                    over(name, trial.options)
        return ended

    for number in range(trials):
        courses = {}
        for name, study in studies.items():
            options = study.options(study.ask(number))
            rungs = rungs_of(study.configured_steps) if halving else ()
            courses[name] = _Course(number, options, study.searched(options), study.steps(options), rungs, study)
        for name, trial in run(courses).items():
            studies[name].tell(trial.value(bound), pruned=trial.pruned)
            found[name].append(trial)
    rescued: set[str] = set()
    while again := {name: one for name in methods if (one := _to_finish(found[name], bound, name in rescued))}:
        courses = {name: _Course(t.number, t.options, t.searched, t.steps, (), None) for name, t in again.items()}
        for name, trial in run(courses).items():
            found[name][trial.number] = trial
            rescued.add(name)
    return {name: Tuning(tuple(of_one), bound) for name, of_one in found.items()}


def _to_finish(trials: list[Trial], bound: Bound, rescued: bool) -> Trial | None:
    """Return the pruned trial that must be trained to its end, or None (see `tune`)."""
    finished = [t for t in trials if t.score is not None and not t.pruned]
    pruned = [t for t in trials if t.pruned]
    if finished:
        if rescued or any(t.feasible(bound) for t in finished):
            return None
        pruned = [t for t in pruned if t.feasible(bound)]
    return max(pruned, key=lambda t: t.rank(bound), default=None)


class _Course:
    """The way of one trial over the rungs to the end of its training."""

    def __init__(
        self, number: int, options: Options, searched: Options, steps: int, rungs: tuple[int, ...], study: Study | None
    ) -> None:
        self.number, self._options, self._searched, self._study = number, options, searched, study
        self._rungs = [step for step in rungs if step < steps]
        self._whole = steps
        self._rung = 0
        self._ended_at: int | None = None  # the pause before which a stop rule ended the training

    def request(self) -> Request:
        if self._ended_at is None and self._rung < len(self._rungs):
            return Request(self._options, self._rungs[self._rung], FACTOR ** (self._rung - RUNGS))
        return Request(self._options, self._ended_at, 1.0)

    def take(self, found: Measured | str, bound: Bound) -> Trial | None:
        """Take the measurements of the last request. Returns the trial if it is over."""
        if isinstance(found, str):
            reached = self._rungs[self._rung - 1] if self._rung else 0
            return Trial(self.number, self._options, self._searched, None, found, reached)
        trial = Trial(self.number, self._options, self._searched, found.score, None, found.steps)
        if self.request().share == 1.0:
            return trial
        value = trial.value(bound)
        assert value is not None
        assert self._study is not None
        if self._study.prunes(value, self._rung):
            return replace(trial, pruned=True)
        if found.ended:
            self._ended_at = self._rungs[self._rung]
        self._rung += 1
        return None
