"""Benchmark scores with their own units: intervals, changes, `wpn-bench check`, baselines and the report's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_run import write_run

from wpn_bench.analysis import baselines, own_units
from wpn_bench.analysis.benchmark_rows import ability_change, benchmark_rows
from wpn_bench.analysis.check import check
from wpn_bench.analysis.gates import Gates, Target, gates_of
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.own_units import Scored
from wpn_bench.analysis.pairing import pair
from wpn_bench.errors import UserError
from wpn_bench.report import charts, tables
from wpn_bench.report import check as said
from wpn_bench.report.render import render
from wpn_bench.runs.finished import LabelledRun, Run
from wpn_bench.runs.metrics import metric_of

N = 60
BITS = "lower_is_better[bits_per_byte]"


def documents(model: str, task: str, factor: float, scale: str = "mean", *, seed: int | None = 0, higher: bool = False):
    """Documents whose scores differ, times a factor."""
    rng = np.random.default_rng(1)
    scores = factor * rng.uniform(0.5, 1.5, N) * 100
    weights = rng.integers(50, 150, N).astype(float)
    if scale == "whole":
        scores, weights = np.full(N, factor), np.ones(N)
    rows = {"doc_id": range(N), "doc_hash": [f"{task}{k}" for k in range(N)], "target": "", "correct": False}
    unit = {"metric": {"text": "bits_per_byte", "pages": "word_perplexity", "translations": "bleu"}[task]}
    unit |= {"higher_is_better": higher, "scale": scale}
    frame = pd.DataFrame(
        {"model": model, "seed": seed, "task": task, **rows, "score": scores, "weight": weights, **unit}
    )
    return frame.astype({"seed": "Int64"})


def made(folder: Path, worse: float = 1.05, seeds: tuple[int, ...] = (0,)) -> Path:
    """A run whose model `wpn` needs more bits, is more perplexed, and translates better."""
    parts = []
    for model, seed, factor in [("base", None, 1.0), *(("wpn", s, worse * (1 + 0.01 * s)) for s in seeds)]:
        parts.append(documents(model, "text", factor, seed=seed))
        parts.append(documents(model, "pages", factor, "log", seed=seed))
        parts.append(documents(model, "translations", 20 * factor, "whole", seed=seed, higher=True))
    models = {"base": (0.1, 0.8, 0.0), "wpn": (0.98, 0.8, 0.02)}
    return write_run(folder, models, n=40, seeds=seeds, own=pd.concat(parts), manifest={"model": {"digest": "d"}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("runs") / "one")


def test_rows_carry_unit_and_direction_and_stay_out_of_the_average(run: Path) -> None:
    view = Run.read(run).view
    assert view.own_benchmarks() == {
        "text": BITS,
        "pages": "lower_is_better[word_perplexity]",
        "translations": "higher_is_better[bleu]",
    }
    cell = view.cell("wpn", "benchmark", "text", BITS)
    assert cell is not None
    base = view.cell("base", "benchmark", "text", BITS)
    assert base is not None
    assert base.value is not None
    assert cell.value == pytest.approx(1.05 * base.value)
    assert cell.delta == pytest.approx(0.05 * base.value)
    # Every document is worse by the same factor, so that the change relative to base's value is known exactly.
    assert (cell.delta_ci_low, cell.delta_ci_high) == pytest.approx((cell.delta, cell.delta))
    assert base.ci_low is not None
    assert base.ci_high is not None
    assert base.ci_low < base.value < base.ci_high
    assert view.benchmark_average("wpn").n == 3 * 40  # type: ignore[union-attr]
    whole = view.cell("wpn", "benchmark", "translations", "higher_is_better[bleu]")
    assert whole is not None
    assert (whole.value, whole.ci_low, whole.delta_ci_low) == (21.0, None, None)
    assert (metric_of(BITS).title, metric_of(BITS).better, metric_of("higher_is_better[bleu]").better) == (
        "bits per byte",
        -1,
        1,
    )


def test_intervals_cover_the_true_change() -> None:
    """The 95 % interval of a relative change covers the truth in about 95 % of samples."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        words = rng.integers(20, 200, (1, 80)).astype(float)
        old = words * rng.normal(3.0, 0.5, (1, 80))
        new = old + words * rng.normal(0.1, 0.2, (1, 80))
        found = own_units.change([Scored(old, words, "log")], [Scored(new, words, "log")], [1.0]).relative
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= np.expm1(0.1) <= found.high
    assert 52 <= covered <= 60


def test_seeds_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    old, weights = rng.uniform(1, 2, (1, 50)), np.ones((1, 50))
    new = np.concatenate([old + 0.1, old + 0.5])
    both = np.ones((2, 50))
    several = own_units.change([Scored(old, weights, "mean")], [Scored(new, both, "mean")], [1.0])
    alone = own_units.change([Scored(old, weights, "mean")], [Scored(new[:1] + 0.2, weights, "mean")], [1.0])
    assert several.value == pytest.approx(alone.value)
    assert several.high - several.low > 3 * (alone.high - alone.low)  # type: ignore[operator]


@pytest.mark.parametrize("old", [0.0, -1.0])
def test_there_is_no_relative_change_of_a_value_that_is_not_positive(old: float) -> None:
    scores = np.full((1, 20), old)
    found = own_units.change([Scored(scores, scores**0, "mean")], [Scored(scores + 1, scores**0, "mean")], [1.0])
    assert (found.value, found.relative) == (1.0, None)


def test_check_bounds_the_relative_change_and_says_what_it_does_not_watch(run: Path) -> None:
    checked = check(run, Gates(max_drop={"coherent_harmless_rate": 5}))
    assert not [f for f in checked.findings if f.target.own_unit]
    notes = [note for note in checked.notes if "not watched" in note]
    assert notes == [
        "text is measured by bits per byte, which has no common margin, so it is not watched: set a bound in per cent with"
        " --max-rise text=...",
        "pages is measured by word perplexity, which has no common margin, so it is not watched: set a bound in per cent"
        " with --max-rise pages=...",
        "translations is measured by bleu, which has no common margin, so it is not watched: set a bound in per cent with"
        " --max-drop translations=...",
    ]


@pytest.mark.parametrize(
    ("target", "limit", "outcome"),
    [("text", 6.0, "pass"), ("bits_per_byte@text", 4.0, "regression"), ("pages", 1.0, "regression")],
)
def test_a_rise_in_per_cent_is_judged(run: Path, target: str, limit: float, outcome: str) -> None:
    checked = check(run, Gates(max_rise={target: limit}))
    (found,) = [f for f in checked.findings if f.target.own_unit]
    assert (found.outcome, found.required, found.n) == (outcome, True, N)
    assert found.limit == f"+{limit:g} %"
    if target != "pages":
        assert found.figure == "+5.0 % [+5.0, +5.0]"
        assert found.value == pytest.approx(0.05)
    assert str(found.target) == {"text": "bits_per_byte@text", "pages": "word_perplexity@pages"}.get(target, target)
    assert found.reason.endswith("is ruled out" if outcome == "pass" else "is shown")
    assert said.markdown(checked)


def test_a_metric_of_the_whole_set_and_wrong_directions_are_not_judged(run: Path) -> None:
    (found,) = [f for f in check(run, Gates(max_drop={"translations": 5})).findings if f.target.own_unit]
    assert (found.outcome, found.value) == ("inconclusive", pytest.approx(0.05))
    assert "computed from all documents together" in found.reason
    with pytest.raises(UserError, match="text is better when it falls") as wrong:
        check(run, Gates(max_drop={"text": 5}))
    assert wrong.value.hint == "use --max-rise text=..."
    with pytest.raises(UserError, match="unknown metric 'ter'"):
        check(run, Gates(max_rise={"ter@text": 5}))


def test_absolute_bounds_are_in_the_unit_of_the_metric(run: Path) -> None:
    checked = check(run, Gates(max={"bits_per_byte@text": 2.0}, min={"bleu@translations": 20.5}))
    found = {str(f.target): f for f in checked.findings if f.kind != "change"}
    assert found["bits_per_byte@text"].outcome == "pass"
    assert found["bits_per_byte@text"].limit == "<= 2.00"
    assert found["bleu@translations"].outcome == "inconclusive"  # without an interval
    with pytest.raises(UserError, match="a benchmark with its own unit is METRIC@BENCHMARK"):
        gates_of({"max": {"text": 2.0}})
    assert Target.parse("text").resolved({"text": BITS}) == Target(BITS, "text")


def test_a_baseline_keeps_the_scores(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    baselines.write(baselines.of_run(run), file)
    kept = baselines.read(file)
    assert kept.own_metrics == Run.read(run).view.own_benchmarks()
    worse = made(tmp_path / "worse", 1.2, (0, 1, 2))
    checked = check(worse, Gates(max_rise={"text": 5.0}), file)
    (found,) = [f for f in checked.findings if f.target.own_unit]
    assert found.outcome == "regression"
    assert found.value == pytest.approx(1.2 * 1.01 / 1.05 - 1)
    file.write_text(
        file.read_text().replace('"scale":"mean"', '"scale":null').replace('"scale": "mean"', '"scale": null')
    )
    with pytest.raises(UserError, match="are damaged"):
        baselines.read(file)


def test_a_broken_model_is_kept_in_a_baseline(tmp_path: Path) -> None:
    broken = made(tmp_path / "broken", float("inf"))
    baselines.write(baselines.of_run(broken), tmp_path / "b.json")
    kept = baselines.read(tmp_path / "b.json")
    (found,) = [
        f for f in check(broken, Gates(max_rise={"text": 5.0}), tmp_path / "b.json").findings if f.target.own_unit
    ]
    assert found.outcome == "inconclusive"
    assert kept.accuracies == ["copa", "piqa", "lambada"]


def test_runs_are_paired_in_the_unit(run: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", 1.10)
    found = pair(LabelledRun.read(run, label="a"), LabelledRun.read(other, label="b"))
    rows = {row.set: row for row in found.rows if row.metric == BITS and row.seed is None}
    assert rows["text"].delta == pytest.approx(rows["text"].value * (1 - 1.05 / 1.10))  # type: ignore[operator]


def test_the_report_shows_them_in_their_units_and_not_in_the_chart(run: Path) -> None:
    view = Run.read(run).view
    table = tables.benchmarks(view)
    assert table is not None
    lines = {line.key: line for line in table.lines}
    cell = lines["text"].cells[1]
    assert cell is not None
    assert (cell.tone, cell.mark, cell.note) == ("bad", True, "+5.0 %")
    assert "bits per byte; lower is better; not in the average" in lines["text"].small
    assert "higher is better" in lines["translations"].small
    assert lines["translations"].cells[1].tone == ""  # type: ignore[union-attr]
    figure = charts.benchmarks(view)
    assert figure is not None
    assert "translations" not in str(figure)
    render(run)
    page = (run / "report.html").read_text()
    assert "A benchmark with a unit of its own" in page
    assert "bits per byte; lower is better" in page


def test_tuning_turns_the_sign_of_a_loss(tmp_path: Path) -> None:
    def measured(model: str, task: str, factor: float, scale: str, *, higher: bool = False) -> Measurement:
        folder = tmp_path / f"{model}-{task}"
        folder.mkdir()
        frame = documents(model, task, factor, scale, higher=higher)
        frame.drop(columns=["model", "seed", "task"]).to_parquet(folder / "documents.parquet")
        return Measurement(model, None if model == "base" else 0, "benchmark", task, folder)

    before = [measured("base", "text", 1.0, "mean"), measured("base", "translations", 20.0, "whole", higher=True)]
    after = [measured("wpn", "text", 1.1, "mean"), measured("wpn", "translations", 21.0, "whole", higher=True)]
    assert ability_change(before, after) == pytest.approx((-0.1 + 0.05) / 2)
    assert np.isnan(ability_change([before[0]], [measured("ga", "text", float("nan"), "mean")]))


def test_values_beyond_0_to_1_of_one_model_change_the_unit_of_all() -> None:
    plain = pd.DataFrame(
        {"doc_id": range(N), "correct": False, "score": 0.5, "task": "t", "model": "base", "seed": None}
    )
    beyond = documents("wpn", "text", 1.0, higher=True).assign(task="t", metric="reward", weight=1.0)
    rows = benchmark_rows(pd.concat([plain.astype({"seed": "Int64"}), beyond]))
    assert {row.metric for row in rows} == {"higher_is_better[reward]"}
    assert rows[0].value == 0.5
