"""The rule by which trials are ranked and drawn; no training here."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.errors import UserError
from wpn_bench.unlearn import tuning
from wpn_bench.unlearn import tuning as unlearn_tuning
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.search import Choice, Float, Log
from wpn_bench.unlearn.tuning import Bound, Options, Score, Trial, Tuning, tune

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


measured = st.builds(
    Score,
    st.floats(0, 1),
    st.floats(0, 1),
    st.one_of(st.floats(-1, 1), st.just(math.inf), st.just(math.nan)),
)
trials = st.lists(st.one_of(measured, st.none()), min_size=1, max_size=12).map(
    lambda scores: [Trial(k, {}, {}, s, None if s else "failed") for k, s in enumerate(scores)]
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
                assert best.score.coherent_harmless >= other.score.coherent_harmless
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

    def __init__(self, optimum: float = 0.5, failing: float = math.inf) -> None:
        self.optimum = optimum
        self.failing = failing
        self.rounds: list[dict[str, Options]] = []

    def __call__(self, number: int, options: Mapping[str, Options]) -> dict[str, Score | str]:
        assert number == len(self.rounds)
        self.rounds.append(dict(options))
        return {name: self.score(one) for name, one in options.items()}

    def score(self, options: Options) -> Score | str:
        factor = options.get("lr", 0.05 / WIDTH) / (0.05 / WIDTH)
        if factor > self.failing:
            return "training diverged"
        return Score(max(0.0, 1 - abs(math.log(factor / self.optimum))), 1.0, -0.01 * factor)


def test_every_method_gets_the_same_number_of_trials() -> None:
    methods: dict[str, dict[str, Any]] = {"wpn": {}, "wpn:hidden": {"space": "hidden"}, "sft": {"steps": 10}}
    land = Landscape()
    found = tune(methods, 6, ACCURACY, WIDTH, land)
    assert len(land.rounds) == 6
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
        tuning.require_optuna()
