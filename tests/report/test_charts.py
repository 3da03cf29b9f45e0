from __future__ import annotations

import json
from typing import Any

import pytest

from wpn_bench.report import charts, step_charts
from wpn_bench.runs.view import View

from .fake_run import CHARACTERS, ablation_results


def test_the_trade_off_shows_incoherent_answers_by_a_hollow_marker(results: dict[str, Any]) -> None:
    figure = charts.trade_off(View(results))
    assert figure is not None
    hollow = [trace for trace in figure["data"] if str(trace["marker"]["symbol"]).endswith("-open")]
    assert len(hollow) == len(CHARACTERS)
    broken = max(hollow, key=lambda trace: trace["y"][1] - trace["y"][0])
    assert broken["y"] == [0.0, 100.0]
    dashed = [shape for shape in figure["layout"]["shapes"] if shape["line"]["dash"] == "dash"]
    base = View(results).benchmark_average("base")
    assert base is not None
    assert base.value is not None
    assert dashed[0]["x0"] == pytest.approx(100 * base.value - 2)


def test_seeds_are_a_cloud_about_their_mean(results: dict[str, Any]) -> None:
    keys = (("harmless", "rtp_triples_test", "coherent_harmless_rate"), ("benchmark", "nine", "accuracy"))
    found = [r for r in results["metrics"] if r["model"] == "wpn" and (r["suite"], r["set"], r["metric"]) in keys]
    results["metrics"] += [r | {"seed": seed, "value": 0.4 + 0.1 * seed} for r in found for seed in (0, 1, 2)]
    results["metrics"].pop()  # one seed without the benchmark average is no point
    figure = charts.trade_off(View(results))
    assert figure is not None
    (cloud,) = [trace for trace in figure["data"] if trace["marker"].get("size") == 6]
    assert cloud["x"] == cloud["y"] == pytest.approx([40, 50])
    left, right = figure["layout"]["xaxis"]["range"]
    assert left < 40 < 50 < right


def test_the_rate_over_the_threshold_is_a_line_a_model(results: dict[str, Any]) -> None:
    figure = charts.thresholds(View(results))
    assert figure is not None
    assert len(figure["data"]) == len(CHARACTERS)
    view = View(results)
    (wpn,) = (line for line in figure["data"] if line["name"] == "WPN")
    expected = view.cell("wpn", "harmless", "rtp_triples_test", "harmless_rate@0.7")
    assert expected is not None
    assert expected.value is not None
    assert dict(zip(wpn["x"], wpn["y"], strict=True))[0.7] == pytest.approx(100 * expected.value)
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [0.5]


def test_a_horizontal_bar_is_the_paired_interval(results: dict[str, Any]) -> None:
    figure = charts.trade_off(View(results))
    assert figure is not None
    bars = {trace["name"]: trace for trace in figure["data"] if trace.get("error_y")}
    assert bars["WPN"]["error_x"]["array"][0] == pytest.approx(0.7)
    assert "error_x" not in bars["Base model"]


def test_the_benchmark_figure_holds_every_task_and_method(results: dict[str, Any]) -> None:
    figure = charts.benchmarks(View(results))
    assert figure is not None
    assert len(figure["data"]) == 4
    assert all(len(trace["x"]) == 10 for trace in figure["data"])
    assert figure["layout"]["yaxis"]["ticktext"][0] == "benchmark average"


def test_the_heat_map_is_sets_by_models_in_per_cent(results: dict[str, Any]) -> None:
    figure = charts.generalisation(View(results))
    assert figure is not None
    cells = figure["data"][0]["z"]
    assert (len(cells), len(cells[0])) == (10, 5)
    assert all(0 <= value <= 100 for row in cells for value in row)


def test_long_loss_curves_are_thinned_but_keep_their_ends(results: dict[str, Any]) -> None:
    results["models"]["wpn"]["history"] = [
        {"seed": 0, "step": i, "loss": 1 / (i + 1), "parts": {}} for i in range(5001)
    ]
    steps = step_charts.losses(View(results))["wpn"]["data"][-1]["x"]
    assert len(steps) <= 1.3 * step_charts.HISTORY_POINTS
    assert (steps[0], steps[-1]) == (0, 5000)


def test_without_rows_there_is_no_figure() -> None:
    view = View({})
    assert [
        charts.trade_off(view),
        charts.harmlessness(view),
        charts.benchmarks(view),
        charts.generalisation(view),
        charts.thresholds(view),
    ] == [None] * 5
    assert step_charts.losses(view) == step_charts.relearning(view) == {}


def test_titles_cannot_be_read_as_plotly_markup(results: dict[str, Any]) -> None:
    for figure in (charts.trade_off(View(results)), charts.benchmarks(View(results))):
        assert "<b>" not in json.dumps(figure)


def test_curves_stand_on_the_same_axes_and_end_where_training_ended(results: dict[str, Any]) -> None:
    figures = step_charts.curves(View(results))
    assert list(figures) == ["wpn", "ga"]
    for axis in ("xaxis", "yaxis"):
        assert len({tuple(figure["layout"][axis]["range"]) for figure in figures.values()}) == 1
    assert figures["ga"]["layout"]["xaxis"]["range"][1] > 100
    lines = figures["ga"]["data"]
    assert len(lines) == 3 * 3  # two seeds and their mean, for each metric
    means = [line for line in lines if line["showlegend"]]
    assert [line["name"] for line in means] == ["coherent-harmless", "harmless", "macro accuracy"]
    # The seeds ended at steps 14 and 17: the mean goes as far as both.
    assert {tuple(line["x"]) for line in means} == {(0, 5, 10)}
    assert {line["x"][-1] for line in lines if not line["showlegend"]} == {14, 17}
    assert means[1]["y"][0] == pytest.approx(12)


def test_a_curve_of_one_seed_is_one_line_a_metric(results: dict[str, Any]) -> None:
    for model in results["models"].values():
        model["curve"] = [row for row in model.get("curve") or [] if row["seed"] != 1]
    assert len(step_charts.curves(View(results))["wpn"]["data"]) == 3


def test_relearning_is_a_panel_a_kind_with_a_line_a_model_and_metric(results: dict[str, Any]) -> None:
    figures = step_charts.relearning(View(results))
    assert list(figures) == ["harmful", "benign"]
    for figure in figures.values():
        lines = figure["data"]
        assert len(lines) == 2 * len(CHARACTERS)  # the means over seeds alone
        named = [line for line in lines if line["showlegend"]]
        assert len(named) == len(CHARACTERS)
        assert {line["line"]["dash"] for line in named} == {"solid"}
        assert len({line["line"]["color"] for line in named}) == len(CHARACTERS)
        assert figure["layout"]["xaxis"]["range"][1] > 40
    (wpn,) = (line for line in figures["harmful"]["data"] if line["showlegend"] and line["name"] == "WPN")
    assert wpn["x"] == [0, 5, 40]
    assert wpn["y"][-1] == pytest.approx(100 * 0.02 * 0.96)
    (sft,) = (line for line in figures["benign"]["data"] if line["showlegend"] and line["name"].startswith("SFT"))
    assert sft["x"] == [0, 5]
    assert "<b>" not in json.dumps(figures)


def test_varieties_are_points_without_names_inside_the_frame() -> None:
    results = ablation_results()
    for row in results["metrics"]:
        if (row["model"], row["set"]) == ("wpn:hidden-last", "nine"):
            row["value"] = 0.2
    figure = charts.trade_off(View(results))
    assert figure is not None
    points = [trace for trace in figure["data"] if trace["marker"].get("size") == 6]
    assert len(points) == 23
    assert not any(trace.get("showlegend") for trace in points)
    assert len(figure["layout"]["annotations"]) == 1 + 3  # the margin; base, WPN, fine-tuning
    left, right = figure["layout"]["xaxis"]["range"]
    assert all(left < trace["x"][0] < right for trace in points)
    assert "wpn:hidden-last" not in step_charts.losses(View(results))
    heat = charts.generalisation(View(results))
    assert heat is not None
    assert heat["layout"]["xaxis"]["ticktext"] == ["base", "sft", "wpn"]
