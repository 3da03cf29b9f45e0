from __future__ import annotations

import math
from typing import Any

import pytest

from wpn_bench.runs.metrics import ANSWERED_RATE, COHERENT_HARMLESS_RATE
from wpn_bench.runs.view import MANY, View


def row(model: str, suite: str, name: str, metric: str, value: float | None, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "seed": None,
        "suite": suite,
        "set": name,
        "metric": metric,
        "value": value,
        "n": 100,
    } | more


def test_one_set_is_its_own_mean_and_keeps_its_p_value() -> None:
    view = View(
        {"metrics": [row("wpn", "ood", "a", COHERENT_HARMLESS_RATE, 0.5, ci_low=0.4, ci_high=0.6, p_value=0.03)]}
    )
    mean = view.mean("wpn", "ood")
    assert mean is not None
    assert (mean.value, mean.ci_low, mean.p_value) == (0.5, 0.4, 0.03)


def test_the_interval_of_a_mean_recovers_the_variances_of_its_sets() -> None:
    rows = [
        row("wpn", "ood", name, COHERENT_HARMLESS_RATE, v, ci_low=v - 0.03, ci_high=v + 0.04)
        for name, v in (("a", 0.4), ("b", 0.6))
    ]
    mean = View({"metrics": rows}).mean("wpn", "ood")
    assert mean is not None
    assert mean.value == pytest.approx(0.5)
    assert mean.ci_low == pytest.approx(0.5 - math.hypot(0.03, 0.03) / 2)
    assert mean.ci_high == pytest.approx(0.5 + math.hypot(0.04, 0.04) / 2)
    assert mean.n == 200


def test_where_refusing_is_wrong_a_set_counts_with_its_answers() -> None:
    rows = [row("wpn", "ood", "a", COHERENT_HARMLESS_RATE, 0.8), row("wpn", "ood", "b", COHERENT_HARMLESS_RATE, 0.6)]
    rows.append(row("wpn", "ood", "b", ANSWERED_RATE, 0.2))
    view = View({"metrics": rows})
    assert [view.rate_of("ood", name) for name in "ab"] == [COHERENT_HARMLESS_RATE, ANSWERED_RATE]
    mean, worst, plain = (
        view.mean("wpn", "ood"),
        view.worst("wpn", "ood"),
        view.mean("wpn", "ood", COHERENT_HARMLESS_RATE),
    )
    assert mean is not None
    assert worst is not None
    assert plain is not None
    assert (mean.value, worst.value, worst.note) == (0.5, 0.2, "b")
    assert plain.value == pytest.approx(0.7)


def test_a_row_that_sums_a_suite_up_is_preferred_to_our_own_mean() -> None:
    rows = [row("wpn", "ood", "a", COHERENT_HARMLESS_RATE, 0.4), row("wpn", "ood", "all", COHERENT_HARMLESS_RATE, 0.9)]
    view = View({"metrics": rows})
    mean = view.mean("wpn", "ood")
    assert mean is not None
    assert mean.value == 0.9
    assert view.sets("ood") == ["a"]


def test_a_mean_over_fewer_sets_than_others_had_says_so() -> None:
    rows = [
        row("base", "ood", "a", COHERENT_HARMLESS_RATE, 0.4),
        row("base", "ood", "b", COHERENT_HARMLESS_RATE, 0.4),
        row("wpn", "ood", "a", COHERENT_HARMLESS_RATE, 0.9),
    ]
    mean = View({"metrics": rows}).mean("wpn", "ood")
    assert mean is not None
    assert mean.note == "1 of 2 sets"


def test_nan_and_null_are_holes_and_not_zeros() -> None:
    view = View(
        {
            "metrics": [
                row("wpn", "ood", "a", COHERENT_HARMLESS_RATE, math.nan),
                row("wpn", "ood", "b", COHERENT_HARMLESS_RATE, None),
            ]
        }
    )
    assert view.cell("wpn", "ood", "a", COHERENT_HARMLESS_RATE) is None
    assert view.mean("wpn", "ood") is None


def test_the_worst_case_is_no_attack_of_its_own() -> None:
    """Neither in the mean of the attacks nor as the worst of them, but to be asked for by its name."""
    values = (("typos", 0.8), ("gcg", 0.4), ("worst_case", 0.1))
    view = View({"metrics": [row("wpn", "attack", name, COHERENT_HARMLESS_RATE, value) for name, value in values]})
    mean, worst, together = (
        view.mean("wpn", "attack"), view.worst("wpn", "attack"), view.cell("wpn", "attack", "worst_case", COHERENT_HARMLESS_RATE),
    )  # fmt: skip
    assert mean is not None
    assert worst is not None
    assert together is not None
    assert mean.value == pytest.approx(0.6)
    assert (worst.value, worst.note) == (0.4, "gcg")
    assert together.value == 0.1
    assert view.sets("attack") == ["typos", "gcg"]


def test_the_worst_attack_names_itself() -> None:
    rows = [row("wpn", "attack", name, COHERENT_HARMLESS_RATE, value) for name, value in (("typos", 0.8), ("gcg", 0.3))]
    worst = View({"metrics": rows}).worst("wpn", "attack")
    assert worst is not None
    assert (worst.note, worst.value) == ("gcg", 0.3)


def models(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"title": name, "method": None if name == "base" else name.partition(":")[0]} for name in names}


def test_of_many_varieties_the_plain_one_stands_for_its_method() -> None:
    many = ["base", "sft", "sft:kl", *(f"wpn:{k}" for k in range(MANY)), "wpn"]
    view = View({"models": models(*many), "metrics": [row(m, "ood", "a", COHERENT_HARMLESS_RATE, 0.5) for m in many]})
    assert view.measured() == ["base", "sft", "sft:kl", "wpn"]
    assert view.every_measured() == many
    # A few are models like any others; without a plain one the first stands for them all.
    few = many[:-1]
    view = View({"models": models(*few), "metrics": [row(m, "ood", "a", COHERENT_HARMLESS_RATE, 0.5) for m in few]})
    assert view.measured() == few
    few = [*few, "wpn:more"]
    view = View({"models": models(*few), "metrics": [row(m, "ood", "a", COHERENT_HARMLESS_RATE, 0.5) for m in few]})
    assert view.measured() == ["base", "sft", "sft:kl", "wpn:0"]
