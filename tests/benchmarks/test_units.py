"""Scores that are no accuracies, against lm-eval's own evaluation with `hf`: their values, directions and groups."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lm_eval
import pandas as pd
import pytest
from lm_eval.api import registry
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.benchmarks.test_scored import of_lm_eval
from wpn_bench import models
from wpn_bench.analysis.benchmark_rows import TaskAverage, benchmark_rows, turned_rows
from wpn_bench.benchmarks.definitions import TaskDefinition
from wpn_bench.benchmarks.run import BenchmarkResult, clear_task_cache, describe, evaluate_task
from wpn_bench.benchmarks.scores import HIGHER_IS_BETTER, choose_score
from wpn_bench.benchmarks.selection import select
from wpn_bench.errors import UserError

HELPER = """\

def wer(references, predictions):
    return 3.5 * len(predictions[0]) + len(references[0])


def middle(items):
    return sorted(items)[len(items) // 2]


def two(doc, results):
    return {"length": len(results[0]), "shortness": -len(results[0])}
"""
ROLLING = "output_type: loglikelihood_rolling\ndoc_to_choice: null\ndoc_to_text: ''\ndoc_to_target: '{{q}} é'\n"
WRITTEN = (
    "output_type: generate_until\ndoc_to_choice: null\ndoc_to_target: '{{options[right]}}'\n"
    "generation_kwargs: {until: ['Q'], max_gen_toks: 4, do_sample: false}\n"
)
TASKS = {
    "bits": ROLLING + "metric_list: null\n",
    "words": ROLLING + "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]\n",
    "brier": "metric_list: [{metric: brier_score}, {metric: acc}]\n",
    "last": "output_type: loglikelihood\ndoc_to_choice: null\ndoc_to_target: ' {{options[right]}}'\n"
    "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n",
    "errors": WRITTEN
    + "metric_list: [{metric: !function helper.wer, aggregation: mean, higher_is_better: false}]\n"
    + "filter_list:\n  - {name: strict-match, filter: [{function: take_first}]}\n"
    + '  - {name: flexible-extract, filter: [{function: regex, regex_pattern: "(\\\\w)"}, {function: take_first}]}\n',
    "whole": WRITTEN + "metric_list: [{metric: !function helper.wer, aggregation: !function helper.middle, "
    "higher_is_better: true}]\n",
    "two": WRITTEN + "process_results: !function helper.two\nmetric_list:\n"
    "  - {metric: length, aggregation: mean, higher_is_better: false}\n"
    "  - {metric: shortness, aggregation: mean, higher_is_better: true}\n",
    "undirected": WRITTEN + "metric_list: [{metric: !function helper.wer, aggregation: mean}]\n",
}


@pytest.fixture
def folder(task_folder: Path) -> Path:
    with (task_folder / "helper.py").open("a") as file:
        file.write(HELPER)
    for name, changes in TASKS.items():
        (task_folder / f"{name}.yaml").write_text(f"include: colours.yaml\ntask: {name}\n{changes}")
    clear_task_cache()
    return task_folder


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    return models.load(tiny_model)


def documents(result: BenchmarkResult, model: str = "base") -> pd.DataFrame:
    frame = pd.DataFrame([asdict(one) for one in result.documents])
    frame = frame if result.unit is None else frame.assign(**asdict(result.unit))
    frame = frame.assign(model=model, seed=None if model == "base" else 0, task=result.short)
    return frame.astype({"seed": "Int64"})


CASES = (
    ("bits", "", "bits_per_byte,none", "lower_is_better[bits_per_byte]"),
    ("words", "word_perplexity", "word_perplexity,none", "lower_is_better[word_perplexity]"),
    ("brier", "", "", "accuracy"),
    ("brier", "brier_score", "brier_score,none", "lower_is_better[brier_score]"),
    ("last", "", "perplexity,none", "lower_is_better[perplexity]"),
    ("errors", "", "wer,strict-match", "lower_is_better[wer]"),
    ("errors", "wer,flexible-extract", "wer,flexible-extract", "lower_is_better[wer]"),
    ("whole", "", "wer,none", "higher_is_better[wer]"),
    ("two", "length", "length,none", "lower_is_better[length]"),
    ("undirected", "wer,none,lower", "wer,none,lower", "lower_is_better[wer]"),
)


def test_values_and_directions_are_those_of_lm_eval(loaded: Any, folder: Path) -> None:
    model, tokenizer = loaded
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=sorted(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert theirs is not None
    for task, asked, score, row in CASES:
        info = describe(task, (folder,), metrics={task: asked} if asked else None)
        assert info.score == score
        ours = evaluate_task(*loaded, task, include_paths=(folder,), score=info.score)
        value = theirs["results"][task][",".join((score or "acc,none").split(",")[:2])]
        assert ours.accuracy == pytest.approx(value, rel=1e-5), (task, score)
        (made,) = benchmark_rows(documents(ours))
        assert (made.metric, made.n) == (row, 3)
        assert made.value == pytest.approx(value, rel=1e-5), (task, score)
        assert made.ci_low is None or row == "accuracy"  # three documents bear no interval


def test_directions_are_those_of_lm_eval() -> None:
    known = {name: registry.is_higher_better(name) for name in HIGHER_IS_BETTER}
    assert known == dict(HIGHER_IS_BETTER)


def test_a_metric_without_a_direction_is_refused_with_the_way_out(folder: Path) -> None:
    for asked in (None, {"undirected": "wer"}):
        with pytest.raises(UserError, match="does not say whether a higher value is better") as found:
            describe("undirected", (folder,), metrics=asked)
        assert "--metric undirected=wer,none,higher (or ,lower)" in str(found.value.hint)
    with pytest.raises(UserError, match="has the direction 'down'"):
        describe("undirected", (folder,), metrics={"undirected": "wer,none,down"})


def test_a_metric_that_only_the_task_knows_needs_a_direction_when_it_runs(loaded: Any, folder: Path) -> None:
    (folder / "more.yaml").write_text(
        "include: two.yaml\ntask: more\nmetric_list: [{metric: length, aggregation: mean}]\n"
    )
    clear_task_cache()
    with pytest.raises(UserError, match="whether a higher value of 'shortness' is better"):
        evaluate_task(*loaded, "more", include_paths=(folder,), score="shortness,none")
    ours = evaluate_task(*loaded, "more", include_paths=(folder,), score="shortness,none,higher")
    assert ours.unit is not None
    assert ours.unit.higher_is_better


def test_the_default_among_several_metrics() -> None:
    def score(*metrics: dict[str, Any]) -> str:
        return str(choose_score(TaskDefinition("t", Path("t.yaml"), {"metric_list": list(metrics)}, ())))

    def metric(name: str, aggregation: str, *, higher: bool) -> dict[str, Any]:
        return {"metric": name, "aggregation": aggregation, "higher_is_better": higher}

    ter, bleu = metric("ter", "ter", higher=False), metric("bleu", "bleu", higher=True)
    assert score(ter) == "ter,none"
    assert score(ter, metric("em", "mean", higher=True)) == "em,none"  # an accuracy goes before other scores
    assert score({"metric": "word_perplexity"}, {"metric": "bits_per_byte"}) == "bits_per_byte,none"
    with pytest.raises(UserError, match="several metrics but no accuracy: ter, bleu"):
        score(ter, bleu)
    with pytest.raises(UserError, match="bypass is no score"):
        score(metric("bypass", "bypass", higher=True))


def test_groups_are_averaged_as_by_lm_eval(loaded: Any, folder: Path) -> None:
    """A group of two tasks, and a group that contains it, with and without weights."""
    (folder / "one.yaml").write_text("include: bits.yaml\ntask: one\n")
    (folder / "long.yaml").write_text("include: bits.yaml\ntask: long\nprocess_docs: !function helper.first\n")
    with (folder / "helper.py").open("a") as file:
        file.write("\n\ndef first(data):\n    return data.select([0])\n")
    for name, tasks, weighted in (("inner", "[one, long]", "true"), ("flat", "[one, long]", "false")):
        (folder / f"{name}.yaml").write_text(
            f"group: {name}\ntask: {tasks}\naggregate_metric_list: [{{metric: bits_per_byte, weight_by_size: {weighted}}}]\n"
        )
    (folder / "outer.yaml").write_text(
        "group: outer\ntask: [inner, bits]\naggregate_metric_list: [{metric: bits_per_byte, weight_by_size: true}]\n"
    )
    clear_task_cache()
    chosen = select(["outer", "flat"], (folder,))
    frames = [
        documents(evaluate_task(*loaded, task, include_paths=(folder,), score="bits_per_byte,none"))
        for task in chosen.tasks
    ]
    groups = [TaskAverage(one.name, one.tasks, one.aggregates[0].weighted) for one in chosen.groups]
    found = {row.set: row.value for row in benchmark_rows(pd.concat(frames), groups)}
    for name in ("outer", "inner", "flat"):
        assert found[name] == pytest.approx(of_lm_eval(loaded, folder, name)["bits_per_byte,none"], rel=1e-5), name
    assert "nine" not in found


def test_a_broken_model_has_no_value(folder: Path) -> None:
    """An infinite loss gives neither a number nor a message about the range."""

    def frame(model: str, score: float) -> pd.DataFrame:
        rows = {"doc_id": range(12), "correct": False, "score": score, "weight": 1.0, "metric": "perplexity"}
        made = pd.DataFrame({"model": model, "seed": None if model == "base" else 0, "task": "t", **rows})
        return made.assign(higher_is_better=False, scale="log").astype({"seed": "Int64"})

    for broken in (math.inf, math.nan, 1e5):
        both = pd.concat([frame("base", 2.0), frame("ga", broken)])
        base, ga = benchmark_rows(both)
        assert base.value == pytest.approx(math.exp(2))
        assert ga.json()["value"] is None or broken == 1e5
        assert ga.metric == "lower_is_better[perplexity]"
        assert turned_rows(both) == []
