"""Tune all methods fairly: each gets the same number of trials, and one rule ranks the trials on validation data.

The objective is the coherent-harmless rate on the validation prompts. The constraint is a maximum loss of ability,
measured on tuning data (`Bound`). `Trial.rank` orders the trials as follows:

1. Feasible trials come first, ordered by their rate.
2. Infeasible trials are ordered by how much they exceed the bound.
3. Failed trials come last.

If two trials are equal, the one with the smaller loss of ability is better, and then the earlier one. Trial 0 is the
method with its configured options. Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) samples the other
trials with a fixed seed, so the same measurements lead to the same trials. Tuning uses no test prompts and no test
documents.

This module does not depend on jobs. `tune` gets a function that evaluates one round of trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from wpn_bench.errors import UserError
from wpn_bench.unlearn import tuning
from wpn_bench.unlearn.methods import method_of
from wpn_bench.unlearn.search import Choice, Drawn, Log, Range, rounded

if TYPE_CHECKING:
    from wpn_bench.unlearn.methods.base import Method


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


SEED = 0  # seed of the sampler, the same for every method, and of the training of every trial
# Trial 0 and three random trials are made before the estimator is used. This number does not depend on the number of all
# trials. So `--tune 20` begins with the trials of `--tune 8`, which may already be in the store.
STARTUP = 4

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
        coherent_harmless: Coherent-harmless rate on the validation prompts.
        harmless: Harmless rate on the validation prompts.
        ability_change: Change of the ability metric from the base model.
    """

    coherent_harmless: float
    harmless: float
    ability_change: float


@dataclass(frozen=True)
class Trial:
    """One training of a method.

    Attributes:
        number: Number of the trial, counted from 0.
        options: Options that differ from the method's defaults.
        searched: Values of the searched options.
        score: The measurements; None if the trial failed.
        reason: Why it failed; None if it did not fail.
    """

    number: int
    options: Options
    searched: Options
    score: Score | None
    reason: str | None = None

    def feasible(self, bound: Bound) -> bool:
        # The tolerance accepts a trial that loses exactly the limit, despite rounding errors.
        return self.score is not None and self._excess(bound) <= 1e-12

    def _excess(self, bound: Bound) -> float:
        return math.inf if self.score is None else bound.loss(self.score.ability_change) - bound.limit

    def rank(self, bound: Bound) -> tuple[int, float, float, int]:
        """Return the sort key of the trial. The best trial has the largest key."""
        if self.score is None:
            return 0, 0.0, 0.0, -self.number
        loss = bound.loss(self.score.ability_change)
        if not self.feasible(bound):
            return 1, -self._excess(bound), -loss, -self.number
        return 2, self.score.coherent_harmless, -loss, -self.number

    def value(self, bound: Bound) -> float | None:
        """Return the first two parts of the rank as one number for the sampler, or None for a failed trial."""
        if self.score is None:
            return None
        return self.score.coherent_harmless if self.feasible(bound) else -min(self._excess(bound), 1e6)


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
            "trials": [
                {
                    "trial": t.number,
                    "params": t.searched,
                    "coherent_harmless_rate": measured(t, "coherent_harmless"),
                    "harmless_rate": measured(t, "harmless"),
                    "ability_change": measured(t, "ability_change"),
                    "feasible": t.feasible(self.bound),
                    "reason": t.reason,
                }
                for t in self.trials
            ],
        }


# Is called with the number of the round and the options of each method. Returns the measurements of each method, or the
# reason of a failure.
Measure = Callable[[int, Mapping[str, Options]], Mapping[str, Score | str]]


def tune(
    methods: Mapping[str, Mapping[str, Any]], trials: int, bound: Bound, width: int, measure: Measure
) -> dict[str, Tuning]:
    """Tune methods. Round k consists of trial k of every method, so the trials of a round can run in parallel.

    Args:
        methods: Options of each method in the configuration.
        trials: Number of trials of each method.
        bound: The maximum loss of ability.
        width: Hidden size of the model.
        measure: Trains and evaluates the trials of one round.

    Returns:
        The trials of each method.
    """
    searches = {name: _Search(name, options, width) for name, options in methods.items()}
    found: dict[str, list[Trial]] = {name: [] for name in methods}
    for number in range(trials):
        drawn = {name: one.ask(number) for name, one in searches.items()}
        options = {name: searches[name].options(point) for name, point in drawn.items()}
        scores = measure(number, options)
        for name, one in searches.items():
            score = scores[name]
            searched = one.searched(options[name])
            trial = (
                Trial(number, options[name], searched, None, score)
                if isinstance(score, str)
                else Trial(number, options[name], searched, score)
            )
            found[name].append(trial)
            one.tell(drawn[name], trial.value(bound))
    return {name: Tuning(tuple(of_one), bound) for name, of_one in found.items()}


def require_optuna() -> Any:
    """Import and return Optuna. If it is not installed, the `UserError` names the extra that installs it."""
    try:
        import optuna
    except ImportError as e:
        raise UserError("--tune needs Optuna, which is not installed", "pip install 'wpn-bench[tune]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Search:
    """Optuna's study of one method, which proposes the options of its trials."""

    def __init__(self, name: str, options: Mapping[str, Any], width: int) -> None:
        self._optuna = require_optuna()
        self._kind = method_of(name)
        self._given = dict(options)
        self._width = width
        self._space = tuning.space(self._kind, options)
        self._distributions = {name: self._distribution(one) for name, one in self._space.items()}
        sampler = self._optuna.samplers.TPESampler(seed=SEED, n_startup_trials=STARTUP)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        self._waiting: Any = None

    def ask(self, number: int) -> Drawn:
        if number == 0:
            return tuning.start(self._kind, self._given)
        self._waiting = self._study.ask(self._distributions)
        return dict(self._waiting.params)

    def tell(self, drawn: Drawn, value: float | None) -> None:
        states = self._optuna.trial.TrialState
        # Failed trials are reported as pruned, because the sampler ranks these below all measured trials. It would ignore
        # trials in the state "failed" and could sample the same point again.
        state = states.PRUNED if value is None else states.COMPLETE
        if self._waiting is not None:
            self._study.tell(self._waiting, value, state=state)
        elif all(drawn[name] in one for name, one in self._space.items()):
            made = self._optuna.trial.create_trial(
                params=drawn, distributions=self._distributions, value=value, state=state
            )
            self._study.add_trial(made)
        # Otherwise trial 0 is outside the search ranges, so the sampler cannot use it. The configuration may set such values.

    def options(self, drawn: Drawn) -> Options:
        return tuning.configured(self._kind, self._given, drawn, self._width)

    def searched(self, options: Options) -> Options:
        """Return the values of the searched options for results and reports. The learning rate is always a number."""
        config = self._kind.Config(**options)
        values = {name: getattr(config, name) for name in self._space}
        return values | ({"lr": config.peak_lr(self._width)} if "lr" in values else {})

    def _distribution(self, one: Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(one, Choice):
            return kinds.CategoricalDistribution(one.options)
        return kinds.FloatDistribution(one.low, one.high, log=isinstance(one, Log))
