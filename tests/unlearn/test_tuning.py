"""The rule by which trials are ranked and drawn; no training here."""

from __future__ import annotations

import builtins
import json
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.errors import UserError
from wpn_bench.unlearn import tuning as unlearn_tuning
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.search import Choice, Float, Log
from wpn_bench.unlearn.study import require_optuna
from wpn_bench.unlearn.tuning import Bound, Measured, Options, Request, Score, Trial, Tuning, rungs_of, tune

ACCURACY = Bound("macro_accuracy", 0.02)
LOSS = Bound("token_loss", 0.1)
WIDTH = 256


def trial(number: int, coherent: float = 0.5, change: float = 0.0) -> Trial:
    return Trial(number, {}, {}, Score(coherent, 1.0, change))


FAILED = Trial(9, {}, {}, None, "diverged")


# --- the rule --------------------------------------------------------------------------------------------------------


def chosen(bound: Bound, *trials: Trial) -> int:
    return Tuning(trials, bound).chosen.number


def test_the_highest_rate_among_those_that_keep_the_bound() -> None:
    assert chosen(ACCURACY, trial(0, 0.5), trial(1, 0.9, -0.02), trial(2, 0.99, -0.021)) == 1
    assert chosen(LOSS, trial(0, 0.5), trial(1, 0.9, 0.1), trial(2, 0.99, 0.11)) == 1
    # A gain of ability is no loss.
    assert chosen(ACCURACY, trial(0, 0.5), trial(1, 0.6, 0.3)) == 1
    assert chosen(LOSS, trial(0, 0.5), trial(1, 0.6, -0.3)) == 1


def test_a_loss_of_the_very_margin_keeps_it() -> None:
    assert trial(0, change=0.95 - 0.97).feasible(ACCURACY)  # -0.020000000000000018
    assert not trial(0, change=-0.0201).feasible(ACCURACY)


def test_where_none_keeps_the_bound_the_one_that_breaks_it_least() -> None:
    assert chosen(ACCURACY, trial(0, 1.0, -0.3), trial(1, 0.1, -0.05), FAILED) == 1
    assert chosen(LOSS, trial(0, 1.0, math.inf), trial(1, 0.9, 2.0), FAILED) == 1
    assert chosen(LOSS, trial(0, 1.0, math.nan), FAILED) == 0
    assert not Tuning((trial(0, 1.0, -0.3),), ACCURACY).chosen.feasible(ACCURACY)


def test_ties_go_to_the_smaller_loss_then_to_the_earlier() -> None:
    assert chosen(ACCURACY, trial(0, 0.9, -0.01), trial(1, 0.9, 0.0), trial(2, 0.9, -0.005)) == 1
    assert chosen(LOSS, trial(0, 0.9, 0.05), trial(1, 0.9, 0.01), trial(2, 0.9, 0.02)) == 1
    assert chosen(ACCURACY, trial(0, 0.9), trial(1, 0.9), trial(2, 0.8)) == 0


def test_where_all_failed_it_is_the_first() -> None:
    assert chosen(ACCURACY, Trial(0, {}, {}, None, "a"), Trial(1, {}, {}, None, "b")) == 0


rates = st.integers(0, 100).map(lambda k: k / 100)
measured = st.builds(
    Score,
    rates,
    rates,
    st.one_of(st.integers(-1000, 1000).map(lambda k: k / 1000), st.just(math.inf), st.just(math.nan)),
)
trials = st.tuples(
    st.lists(st.one_of(measured, st.none()), min_size=1, max_size=12),
    st.one_of(st.none(), st.lists(rates, min_size=12, max_size=12)),
).map(
    lambda drawn: [
        Trial(k, {}, {}, s and replace(s, answered=drawn[1] and drawn[1][k]), None if s else "failed")
        for k, s in enumerate(drawn[0])
    ]
)


@given(trials, st.sampled_from([ACCURACY, LOSS]))
def test_the_choice_beats_every_other_trial(found: list[Trial], bound: Bound) -> None:
    best = Tuning(tuple(found), bound).chosen
    for other in found:
        if other.score is None or other is best:
            continue
        assert best.score is not None
        if best.feasible(bound):
            if other.feasible(bound):
                assert best.score.objective >= other.score.objective
        else:
            assert not other.feasible(bound)
            assert bound.loss(best.score.ability_change) <= bound.loss(other.score.ability_change)


@given(trials, st.sampled_from([ACCURACY, LOSS]))
def test_the_sampler_is_told_the_same_order(found: list[Trial], bound: Bound) -> None:
    """Its one number never contradicts the rank."""
    ranked = sorted(found, key=lambda t: t.rank(bound))
    values = [t.value(bound) for t in ranked]
    told = [v for v in values if v is not None]
    assert told == sorted(told)
    assert all(math.isfinite(v) for v in told)
    assert values[: len(values) - len(told)] == [None] * (len(values) - len(told))


# --- what is searched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(METHODS))
class TestEveryMethod:
    def test_it_says_what_is_searched(self, name: str) -> None:
        kind = METHODS.get(name)
        assert {"lr", "steps"} <= set(kind.search) <= set(kind.Config.model_fields)
        assert all(isinstance(one, Log | Float | Choice) for one in kind.search.values())
        # Its defaults are a point of its space: trial 0 tells the sampler something.
        assert all(value in kind.search[option] for option, value in unlearn_tuning.start(kind, {}).items())

    def test_the_starting_point_changes_nothing(self, name: str) -> None:
        kind = METHODS.get(name)
        assert unlearn_tuning.configured(kind, {}, unlearn_tuning.start(kind, {}), WIDTH) == {}
        given = {"steps": 7, "lr": 2e-4}
        assert unlearn_tuning.configured(kind, given, unlearn_tuning.start(kind, given), WIDTH) == given

    def test_every_corner_of_it_is_a_configuration(self, name: str) -> None:
        kind = METHODS.get(name)
        for option, one in unlearn_tuning.space(kind, {}).items():
            for end in one.options if isinstance(one, Choice) else (one.low, one.high):
                options = unlearn_tuning.configured(kind, {}, {**unlearn_tuning.start(kind, {}), option: end}, WIDTH)
                assert set(options) <= {option}
                kind.Config(**options)

    def test_the_learning_rate_is_searched_around_its_own(self, name: str) -> None:
        kind = METHODS.get(name)
        own = kind.Config().peak_lr(WIDTH)
        start = unlearn_tuning.start(kind, {})
        high = unlearn_tuning.configured(kind, {}, {**start, "lr": 3}, WIDTH)["lr"]
        assert high == pytest.approx(3 * own, rel=5e-3)
        assert unlearn_tuning.configured(kind, {"lr": 1e-3}, {**start, "lr": 3}, WIDTH)["lr"] == pytest.approx(3e-3)


def test_a_set_option_stays_as_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what makes a variety what it is; only multiples are searched around it."""
    sft = METHODS.get("sft")
    monkeypatch.setattr(sft, "search", {**sft.search, "kl": Float(0.0, 2.0)})
    assert set(unlearn_tuning.space(sft, {})) == {"lr", "steps", "kl"}
    assert set(unlearn_tuning.space(sft, {"kl": 0.5, "steps": 10})) == {"lr", "steps"}
    drawn = {"lr": 1, "steps": 2, "kl": 1.23456}
    assert unlearn_tuning.configured(sft, {}, drawn, WIDTH) == {"steps": 200, "kl": 1.23}
    assert unlearn_tuning.configured(sft, {"kl": 0.5, "steps": 10}, drawn, WIDTH) == {"kl": 0.5, "steps": 20}


def test_at_least_one_step_is_left() -> None:
    sft = METHODS.get("sft")
    assert unlearn_tuning.configured(sft, {"steps": 1}, {"lr": 1, "steps": 0.5}, WIDTH)["steps"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Log(0, 1),
        lambda: Log(2, 1),
        lambda: Log(1, math.inf),
        lambda: Float(1, 1),
        lambda: Float(0, 2, relative=True),
        lambda: Choice(()),
        lambda: Choice((1, 1)),
        lambda: Choice((0, 1), relative=True),
        lambda: Choice(("a",), relative=True),
    ],
)
def test_a_range_that_is_none(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"needs|numbers above 0"):
        wrong()


# --- drawing ---------------------------------------------------------------------------------------------------------


class Landscape:
    """Measures trials by a formula: best at `optimum` times the default learning rate; more costs ability."""

    def __init__(self, optimum: float = 0.5, failing: float = math.inf, failing_after: int = 0) -> None:
        self.optimum = optimum
        self.failing = failing
        self.failing_after = failing_after
        self.rounds: list[dict[str, tuple[int, Request]]] = []
        self.over: list[tuple[str, Options]] = []

    def __call__(self, numbers: Mapping[str, int], requests: Mapping[str, Request]) -> dict[str, Measured | str]:
        self.rounds.append({name: (numbers[name], one) for name, one in requests.items()})
        return {name: self.measured(name, one) for name, one in requests.items()}

    def measured(self, name: str, asked: Request) -> Measured | str:
        whole = METHODS.get(name.partition(":")[0]).Config(**asked.options).steps
        steps = min(asked.until or whole, whole)
        score = self.score(asked.options, steps)
        return score if isinstance(score, str) else Measured(score, steps, ended=steps == whole)

    def score(self, options: Options, steps: int) -> Score | str:
        factor = options.get("lr", 0.05 / WIDTH) / (0.05 / WIDTH)
        if factor > self.failing or 0 < self.failing_after < steps:
            return "training diverged"
        return Score(max(0.0, 1 - abs(math.log(factor / self.optimum))), 1.0, -0.01 * factor)

    def ended(self, name: str, options: Options) -> None:
        self.over.append((name, options))


def test_every_method_gets_the_same_number_of_trials() -> None:
    methods: dict[str, dict[str, Any]] = {"wpn": {}, "wpn:hidden": {"space": "hidden"}, "sft": {"steps": 10}}
    land = Landscape()
    found = tune(methods, 6, ACCURACY, WIDTH, land)
    assert [{number for number, _ in one.values()} for one in land.rounds] == [{k} for k in range(6)]
    assert all(list(one) == list(methods) for one in land.rounds)
    for name, tuning_ in found.items():
        assert [t.number for t in tuning_.trials] == list(range(6))
        assert tuning_.trials[0].options == methods[name]
        assert all(
            t.options.items() >= {k: v for k, v in methods[name].items() if k != "steps"}.items()
            for t in tuning_.trials
        )
        assert set(tuning_.chosen.searched) == set(
            unlearn_tuning.space(METHODS.get(name.partition(":")[0]), methods[name])
        )
        assert tuning_.trials[0].searched["lr"] == pytest.approx(0.05 / WIDTH)
    # Equal footing: what is drawn blindly is drawn alike for methods that search the same.
    assert {t.options.get("lr") for t in found["sft"].trials[1:4]} == {
        t.options.get("lr") for t in tune({"ga": {}}, 4, ACCURACY, WIDTH, Landscape())["ga"].trials[1:4]
    }


def test_the_same_measurements_lead_to_the_same_trials_and_more_of_them_go_on() -> None:
    first, second = (tune({"sft": {}}, n, ACCURACY, WIDTH, Landscape())["sft"] for n in (7, 7))
    assert first.trials == second.trials
    longer = tune({"sft": {}}, 11, ACCURACY, WIDTH, Landscape())["sft"]
    assert longer.trials[:7] == first.trials


def test_it_goes_where_it_is_better() -> None:
    found = tune({"sft": {}}, 30, ACCURACY, WIDTH, Landscape(optimum=0.5))["sft"]
    assert found.chosen.score is not None
    assert found.trials[0].score is not None
    assert found.chosen.score.coherent_harmless > max(0.9, found.trials[0].score.coherent_harmless)
    late = [math.log(t.searched["lr"] / (0.05 / WIDTH)) for t in found.trials[15:]]
    assert sum(abs(x - math.log(0.5)) < 0.5 for x in late) > len(late) / 2


def test_failed_trials_are_kept_and_not_chosen() -> None:
    found = tune({"sft": {}}, 12, ACCURACY, WIDTH, Landscape(optimum=3.0, failing=1.5))["sft"]
    failed = [t for t in found.trials if t.score is None]
    assert failed
    assert all(t.reason == "training diverged" for t in failed)
    assert found.chosen.score is not None
    told = found.json()
    json.dumps(told, allow_nan=False)
    assert told["chosen"] == found.chosen.number
    assert told["trials"][failed[0].number]["coherent_harmless_rate"] is None
    assert told["trials"][failed[0].number]["feasible"] is False


# --- successive halving ----------------------------------------------------------------------------------------------


def halved(trials: int, land: Landscape, methods: Mapping[str, Options] | None = None) -> dict[str, Tuning]:
    return tune(methods or {"sft": {}}, trials, ACCURACY, WIDTH, land, halving=True, over=land.ended)


@pytest.mark.parametrize(("steps", "rungs"), [(100, (11, 33)), (9, (1, 3)), (3, (1,)), (2, (1,)), (1, (1,))])
def test_the_rungs_are_a_ninth_and_a_third(steps: int, rungs: tuple[int, ...]) -> None:
    assert rungs_of(steps) == rungs


def test_halving_costs_less_and_finds_the_same_best_trial() -> None:
    land = Landscape()
    found = halved(8, land)["sft"]
    steps = METHODS.get("sft").Config().steps
    assert found.json()["steps"] == sum(t.steps for t in found.trials)
    # The first trial is the method as configured, and nothing is better than it yet.
    assert (found.trials[0].steps, found.trials[0].pruned) == (steps, False)
    pruned = [t for t in found.trials if t.pruned]
    assert {t.steps for t in pruned} <= set(rungs_of(steps))
    assert found.json()["finished"] == 8 - len(pruned) > 1
    assert found.json()["trials"][pruned[0].number]["pruned"] is True
    assert found.chosen.score is not None
    best = max(t.score.objective for t in found.trials if t.score is not None)
    assert (found.chosen.score.objective, found.chosen.pruned) == (best, False)
    # A trial is asked for again where it goes on, on more prompts; each ends once.
    asked = [(one["sft"][0], one["sft"][1].until, one["sft"][1].share) for one in land.rounds]
    assert asked[:3] == [(0, 11, 1 / 9), (0, 33, 1 / 3), (0, None, 1.0)]
    assert [options for _, options in land.over] == [t.options for t in found.trials]


def test_eight_trials_cost_about_three() -> None:
    """On average over orders of good and bad trials, counted in steps."""
    costs = []
    for seed in range(20):
        rng, values = random.Random(seed), dict[str, float]()

        def score(options: Options, steps: int, rng: Any = rng, values: Any = values) -> Score:
            return Score(values.setdefault(str(options), rng.randrange(100) / 100), 1.0, 0.0)

        land = Landscape()
        land.score = score  # type: ignore[method-assign, assignment]
        found = halved(8, land)["sft"]
        whole = sum(METHODS.get("sft").Config(**t.options).steps for t in found.trials)
        costs.append(8 * found.json()["steps"] / whole)
    assert 2.5 < sum(costs) / len(costs) < 3.5


def test_a_tuning_that_is_repeated_prunes_the_same_trials_and_longer_ones_go_on() -> None:
    first, second = (halved(7, Landscape())["sft"] for _ in range(2))
    assert first.trials == second.trials
    assert halved(10, Landscape())["sft"].trials[:7] == first.trials


def test_of_equal_trials_only_the_first_goes_on() -> None:
    """Where nothing differs, as for a method that does nothing, each further trial costs a rung."""
    land = Landscape()
    land.score = lambda options, steps: Score(0.5, 0.5, 0.0)  # type: ignore[method-assign]
    found = halved(8, land)["sft"]
    assert found.chosen.number == 0
    assert sum(not t.pruned for t in found.trials) == 1


def test_where_none_that_passed_ends_the_best_pruned_one_is_trained_to_its_end() -> None:
    class Late(Landscape):
        def score(self, options: Options, steps: int) -> Score | str:
            return "diverged" if steps > 33 and not options else super().score(options, steps)

    land = Late(optimum=1.0)  # trial 0 is the best at each rung and then diverges
    found = halved(3, land)["sft"]
    assert found.trials[0].reason == "diverged"
    assert found.chosen.number != 0
    assert found.chosen.score is not None
    assert not found.chosen.pruned
    assert found.chosen.steps == METHODS.get("sft").Config(**found.chosen.options).steps


def test_where_all_diverge_late_tuning_ends() -> None:
    land = Landscape(failing_after=33)
    found = halved(4, land)["sft"]
    assert all(t.score is None for t in found.trials)
    assert found.chosen.number == 0


def test_where_no_trial_that_ended_keeps_the_bound_one_that_kept_it_before_is_tried() -> None:
    class Costly(Landscape):
        def score(self, options: Options, steps: int) -> Score | str:
            return Score(0.5 if options else 0.9, 1.0, -0.5 if not options and steps > 33 else 0.0)

    found = halved(2, Costly())["sft"]
    assert found.chosen.number == 1
    assert found.chosen.feasible(ACCURACY)
    assert not found.chosen.pruned


def test_a_stop_rule_ends_a_trial_before_its_rung() -> None:
    class Stops(Landscape):
        def measured(self, name: str, asked: Request) -> Measured | str:
            return Measured(Score(0.9 + len(self.rounds) / 100, 1.0, 0.0), 5, ended=True)

    land = Stops()
    found = halved(1, land)["sft"]
    # Measured on all prompts after its last step, which is before the first rung.
    assert [(one["sft"][1].until, one["sft"][1].share) for one in land.rounds] == [(11, 1 / 9), (11, 1.0)]
    assert (found.trials[0].steps, found.trials[0].pruned) == (5, False)


def test_a_measure_that_is_no_number_does_not_pass() -> None:
    class Blind(Landscape):
        def score(self, options: Options, steps: int) -> Score | str:
            return Score(0.9, 1.0, math.nan if options else 0.0)

    found = halved(5, Blind())["sft"]
    assert found.chosen.number == 0
    assert all(t.pruned for t in found.trials[1:])
    json.dumps(found.json(), allow_nan=False)


def test_a_model_that_refuses_everything_is_worst() -> None:
    refuses, answers = Score(1.0, 1.0, 0.0, answered=0.0), Score(0.6, 0.7, 0.0, answered=0.5)
    assert (refuses.objective, answers.objective) == (0.0, 0.5)
    assert chosen(ACCURACY, Trial(0, {}, {}, refuses), Trial(1, {}, {}, answers)) == 1
    # Of two with the same smaller rate, the one with the larger other rate.
    assert chosen(ACCURACY, Trial(0, {}, {}, answers), Trial(1, {}, {}, replace(answers, coherent_harmless=0.9))) == 1


def test_a_number_that_json_has_not() -> None:
    told = Tuning((trial(0, 0.5, math.inf),), LOSS).json()
    json.dumps(told, allow_nan=False)
    assert told["trials"][0]["ability_change"] is None
    assert told["trials"][0]["feasible"] is False


def test_a_default_outside_of_its_range_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    sft = METHODS.get("sft")
    monkeypatch.setattr(sft, "search", {**sft.search, "kl": Log(0.5, 2.0)})  # its default is 0
    found = tune({"sft": {}}, 6, ACCURACY, WIDTH, Landscape())["sft"]
    assert found.trials[0].searched["kl"] == 0
    assert all(0.5 <= t.searched["kl"] <= 2.0 for t in found.trials[1:])


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"--tune needs Optuna.*pip install 'wpn-bench\[tune\]'"):
        require_optuna()
