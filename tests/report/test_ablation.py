"""Varieties of a method as a table over their options."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.report.ablation import Ablation, ablations
from wpn_bench.runs.metrics import COHERENT_HARMLESS_RATE
from wpn_bench.runs.view import View

from .fake_run import ablation_results


@pytest.fixture(scope="module")
def found() -> Ablation:
    (one,) = ablations(View(ablation_results()))
    return one


def test_every_variety_has_its_row_under_its_levels(found: Ablation) -> None:
    assert (found.title, found.factors) == ("WPN", ["space", "pooling", "anchor", "kl"])
    assert len(found.rows) == len({row.model for row in found.rows}) == 24
    # A level that spans rows is written once and reaches as far as it holds.
    spans = [[span for _, span in row.levels] for row in found.rows]
    assert spans[0] == [12, 4, 2, 1]
    assert spans[1] == [0, 0, 0, 1]
    assert [sum(column) for column in zip(*spans, strict=True)] == [24] * 4
    last = found.rows[-1]
    assert last.model == "wpn:hidden-last-no-anchor-no-kl"
    assert [text for text, _ in last.levels] == ["hidden", "last", "off", "off"]
    assert last.flag == "incoherent"
    (plain,) = (row for row in found.rows if row.model == "wpn")
    assert [text for text, _ in plain.levels] == ["output", "position", "on", "on"]


def test_the_columns_are_those_one_decides_by(found: Ablation) -> None:
    assert [m.name for m in found.measures] == [
        "Coherent-harmless, in domain",
        "Out of distribution",
        "Under attack",
        "Benchmark average",
    ]
    (plain,) = (row for row in found.rows if row.model == "wpn")
    view = View(ablation_results())
    attack = view.mean("wpn", "attack")
    assert attack is not None
    cells = [cell for cell in plain.cells if cell is not None]
    assert [cell.value for cell in cells] == ["93.1 %", "88.7 %", f"{100 * (attack.value or 0):.1f} %", "-0.6"]
    assert cells[0].ci == "[89.2, 95.7]"
    assert cells[2].ci == ""  # the attacks change the same prompts
    assert cells[3].ci == "[-1.3, +0.1]"
    assert plain.fills == [pytest.approx(0.931, abs=1e-3), pytest.approx(0.887, abs=1e-3), attack.value, None]


def test_main_effects_are_means_over_all_the_other_options(found: Ablation) -> None:
    assert [(factor, [(e.level, e.n) for e in levels]) for factor, levels in found.effects] == [
        ("space", [("output", 12), ("hidden", 12)]),
        ("pooling", [("position", 8), ("mean", 8), ("last", 8)]),
        ("anchor", [("on", 12), ("off", 12)]),
        ("kl", [("on", 12), ("off", 12)]),
    ]
    by_model = {row.model: row.fills[0] or 0.0 for row in found.rows}
    hidden = [rate for name, rate in by_model.items() if name.startswith("wpn:hidden") or name == "wpn:paper"]
    assert len(hidden) == 12
    shown = found.effects[0][1][1].cells[0]
    assert shown is not None
    assert shown.value == f"{100 * sum(hidden) / 12:.1f} %"
    assert shown.ci == f"[{100 * min(hidden):.1f}, {100 * max(hidden):.1f}]"


def test_without_every_combination_there_are_no_main_effects() -> None:
    results = ablation_results()
    del results["models"]["wpn:hidden-last"]
    results["metrics"] = [row for row in results["metrics"] if row["model"] != "wpn:hidden-last"]
    (one,) = ablations(View(results))
    assert len(one.rows) == 23
    assert one.effects == []


def test_a_variety_that_was_not_measured_is_a_hole_and_spoils_its_means() -> None:
    results = ablation_results()
    results["metrics"] = [
        row for row in results["metrics"] if (row["model"], row["suite"]) != ("wpn:hidden-last", "ood")
    ]
    (one,) = ablations(View(results))
    (row,) = (row for row in one.rows if row.model == "wpn:hidden-last")
    assert row.cells[1] is None
    assert row.fills[1] is None
    means = {e.level: e.cells for _, levels in one.effects for e in levels}
    assert means["hidden"][1] is None
    assert means["output"][1] is not None
    assert means["hidden"][0] is not None


def test_two_methods_and_two_varieties_make_no_table() -> None:
    results = ablation_results()
    kept = ("base", "wpn", "wpn:hidden-last", "sft")
    results["metrics"] = [row for row in results["metrics"] if row["model"] in kept]
    assert ablations(View(results)) == []
    assert ablations(View({})) == []


def test_an_option_that_tuning_moved_is_no_level() -> None:
    """Where the configuration is silent and the option was searched, all of them have one level."""
    results = ablation_results()
    for k, model in enumerate(results["models"].values()):
        if model["method"] == "wpn" and "kl" not in model["options"]:
            model["config"]["kl"] = 1.0 + k / 10
            trial = {"trial": 0, "params": {"kl": 1.0 + k / 10, "lr": 1e-4}, "coherent_harmless_rate": 0.5}
            model["tuning"] = {"chosen": 0, "trials": [trial | {"feasible": True, "reason": None}]}
    (one,) = ablations(View(results))
    assert one.factors == ["space", "pooling", "anchor", "kl"]
    assert {text for row in one.rows for text, _ in row.levels[3:]} == {"on", "off"}


level = st.one_of(st.booleans(), st.integers(0, 2), st.floats(0, 1), st.sampled_from(["a", "b"]), st.none())
options = st.lists(st.dictionaries(st.sampled_from(["x", "y", "z"]), level), min_size=3, max_size=9)


@given(options)
def test_any_options_give_rows_whose_spans_cover_the_table(given_: list[dict[str, Any]]) -> None:
    names = [f"m:{k}" for k in range(len(given_))]
    models = {
        name: {"title": name, "method": "m", "options": one, "config": {"x": 1, "y": 1, "z": 1, **one}}
        for name, one in zip(names, given_, strict=True)
    }
    rows = [
        {
            "model": name,
            "seed": None,
            "suite": "harmless",
            "set": "s",
            "metric": COHERENT_HARMLESS_RATE,
            "value": 0.5,
            "n": 9,
        }
        for name in names
    ]
    for one in ablations(View({"models": models, "metrics": rows})):
        assert sorted(row.model for row in one.rows) == sorted(names)
        for i in range(len(one.factors)):
            assert sum(row.levels[i][1] for row in one.rows) == len(names)
            assert one.rows[0].levels[i][1] > 0
            covered = 0  # a row without a level of its own lies under one that spans it and has the same level
            for k, row in enumerate(one.rows):
                text, span = row.levels[i]
                if span:
                    assert covered <= k
                    covered, above = k + span, text
                else:
                    assert k < covered
                    assert text == above
