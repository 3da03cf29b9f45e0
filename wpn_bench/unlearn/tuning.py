"""Fair tuning: every method gets the same number of trials, each judged on validation data by one rule.

The objective is the coherent-harmless rate on the validation prompts, subject to a bound on what the trial costs of the
model's ability, measured on data to tune on: `Bound`. Trials are ranked by `Trial.rank`: those that keep the bound by
their rate; those that break it below them, by how much they break it; those that failed last. Ties go to the smaller
loss of ability, then to the earlier trial. Trial 0 is the method as it is configured; the others are drawn by Optuna's
tree-structured Parzen estimator (Bergstra et al. 2011) with a fixed seed, so the same measurements lead to the same
trials. No test prompt and no test document is looked at here.

This module knows the rule and nothing of jobs: `tune` is given a function that measures one round of trials.
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
    """What is searched of a method with these `options` of the configuration.

    An option that the configuration sets stays as it is set, for that is what makes a variety what it is; relative
    ranges are searched around the set value.
    """
    return {name: one for name, one in kind.search.items() if one.relative or name not in options}


def start(kind: type[Method], options: Mapping[str, Any]) -> Drawn:
    """The point that changes nothing: the method without tuning."""
    config = kind.Config(**options)
    return {name: 1 if one.relative else getattr(config, name) for name, one in space(kind, options).items()}


def configured(kind: type[Method], options: Mapping[str, Any], drawn: Mapping[str, Any], width: int) -> dict[str, Any]:
    """`options` with the drawn point over them, for a model of hidden size `width`.

    What is as it was is left alone, so that the starting point is the very configuration of an untuned run.
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


SEED = 0  # of the sampler, for every method the same, and of the training of every trial
# Trial 0 and three drawn blindly, then the estimator. A fixed number: the first trials of `--tune 20` are those of
# `--tune 8`, which the store then has.
STARTUP = 4

Options = dict[str, Any]


@dataclass(frozen=True)
class Bound:
    """What a trial may cost: at most `limit` of the macro accuracy (a fraction), or at most `limit` nats a token."""

    metric: Literal["macro_accuracy", "token_loss"]
    limit: float

    def loss(self, change: float) -> float:
        """Ability lost by a `change` against the base; infinite for a change that is not a number."""
        if math.isnan(change):
            return math.inf
        return -change if self.metric == "macro_accuracy" else change


@dataclass(frozen=True)
class Score:
    """What a trial measured: rates on the validation prompts, the change of the ability against the base."""

    coherent_harmless: float
    harmless: float
    ability_change: float


@dataclass(frozen=True)
class Trial:
    """One training of a method: `options` are the changes to its defaults, `searched` the values of what was searched;
    `score` is None where it failed, and `reason` says why."""

    number: int
    options: Options
    searched: Options
    score: Score | None
    reason: str | None = None

    def feasible(self, bound: Bound) -> bool:
        # A trial that loses exactly the margin keeps it, whatever the last bit of the difference says.
        return self.score is not None and self._excess(bound) <= 1e-12

    def _excess(self, bound: Bound) -> float:
        return math.inf if self.score is None else bound.loss(self.score.ability_change) - bound.limit

    def rank(self, bound: Bound) -> tuple[int, float, float, int]:
        """Sorts trials from the worst to the best."""
        if self.score is None:
            return 0, 0.0, 0.0, -self.number
        loss = bound.loss(self.score.ability_change)
        if not self.feasible(bound):
            return 1, -self._excess(bound), -loss, -self.number
        return 2, self.score.coherent_harmless, -loss, -self.number

    def value(self, bound: Bound) -> float | None:
        """The rank's first two parts as one number for the sampler, None for a failed trial."""
        if self.score is None:
            return None
        return self.score.coherent_harmless if self.feasible(bound) else -min(self._excess(bound), 1e6)


@dataclass(frozen=True)
class Tuning:
    """All trials of one method, and the one that was chosen."""

    trials: tuple[Trial, ...]
    bound: Bound
    chosen: Trial = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "chosen", max(self.trials, key=lambda t: t.rank(self.bound)))

    def json(self) -> dict[str, Any]:
        """As it stands in results.json."""

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


# Options of every model of a round in, what each of them measured (or why it failed) out.
Measure = Callable[[int, Mapping[str, Options]], Mapping[str, Score | str]]


def tune(
    methods: Mapping[str, Mapping[str, Any]], trials: int, bound: Bound, width: int, measure: Measure
) -> dict[str, Tuning]:
    """Tune each of `methods` (name -> options of the configuration) with `trials` trials on a model of hidden size
    `width`. Round k is trial k of every method, so a round's trials do not wait for each other."""
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
    """The module; `UserError` naming the extra that installs it."""
    try:
        import optuna
    except ImportError as e:
        raise UserError("--tune needs Optuna, which is not installed", "pip install 'wpn-bench[tune]'") from e
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class _Search:
    """Optuna's side of tuning one method."""

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
        # A failed trial is told as pruned: the sampler holds it for worse than every measured one. As a failure it would
        # forget it, and go there again.
        state = states.PRUNED if value is None else states.COMPLETE
        if self._waiting is not None:
            self._study.tell(self._waiting, value, state=state)
        elif all(drawn[name] in one for name, one in self._space.items()):
            made = self._optuna.trial.create_trial(
                params=drawn, distributions=self._distributions, value=value, state=state
            )
            self._study.add_trial(made)
        # else: a default outside of its own range (the configuration may do so) tells the sampler nothing.

    def options(self, drawn: Drawn) -> Options:
        return tuning.configured(self._kind, self._given, drawn, self._width)

    def searched(self, options: Options) -> Options:
        """What people are shown: the values of the searched options, the learning rate as a number always."""
        config = self._kind.Config(**options)
        values = {name: getattr(config, name) for name in self._space}
        return values | ({"lr": config.peak_lr(self._width)} if "lr" in values else {})

    def _distribution(self, one: Range) -> Any:
        kinds = self._optuna.distributions
        if isinstance(one, Choice):
            return kinds.CategoricalDistribution(one.options)
        return kinds.FloatDistribution(one.low, one.high, log=isinstance(one, Log))
