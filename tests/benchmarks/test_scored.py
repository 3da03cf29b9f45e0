"""Scores other than right and wrong, and chat templates, against lm-eval's own evaluation with `hf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pandas as pd
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from wpn_bench import models
from wpn_bench.analysis.benchmark_rows import TaskAverage, benchmark_rows, turned_rows
from wpn_bench.benchmarks.run import clear_task_cache, describe, evaluate_task

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FILTERS = """\
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(\\\\w)"}, {function: take_first}]}
  - {name: whole, filter: [{function: take_first}]}
"""


@pytest.fixture
def folder(task_folder: Path) -> Path:
    (task_folder / "helper.py").write_text(
        "def choices(doc):\n    return doc['options']\n\n\n"
        "def share(doc, results):\n    lls = [ll for ll, _ in results]\n    return {'acc': lls[0] / sum(lls)}\n"
    )
    (task_folder / "share.yaml").write_text(
        "include: colours.yaml\ntask: share\nprocess_results: !function helper.share\n"
    )
    shots = "num_fewshot: 2\nfewshot_split: test\ndescription: 'Colours.'\n"
    (task_folder / "shots.yaml").write_text(f"include: colours.yaml\ntask: shots\n{shots}")
    (task_folder / "written.yaml").write_text(
        "include: colours.yaml\ntask: written\noutput_type: generate_until\ndoc_to_choice: null\n"
        'doc_to_target: "{{options[right]}}"\ngeneration_kwargs: {until: ["Q"], max_gen_toks: 4, do_sample: false}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n" + FILTERS
    )
    clear_task_cache()
    return task_folder


def of_lm_eval(loaded: Any, folder: Path, task: str, **options: Any) -> dict[str, Any]:
    model, tokenizer = loaded
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    assert found is not None
    return dict(found["results"][task])


def test_a_share_is_the_mean_of_its_documents(tiny_model: Path, folder: Path) -> None:
    loaded = models.load(tiny_model)
    info = describe("share", (folder,))
    assert info.score == "acc,none"
    ours = evaluate_task(*loaded, "share", include_paths=(folder,), score=info.score)
    assert ours.accuracy == pytest.approx(of_lm_eval(loaded, folder, "share")["acc,none"], abs=1e-6)
    assert all(0 < document.score < 1 for document in ours.documents)
    assert sum(document.score for document in ours.documents) / 3 == pytest.approx(ours.accuracy)


@pytest.mark.parametrize("name", ["first", "whole"])
def test_a_filter_is_chosen(tiny_model: Path, folder: Path, name: str) -> None:
    loaded = models.load(tiny_model)
    score = describe("written", (folder,), metrics={"written": f"exact_match,{name}"}).score
    ours = evaluate_task(*loaded, "written", include_paths=(folder,), score=score)
    theirs = of_lm_eval(loaded, folder, "written")
    assert ours.accuracy == theirs[f"exact_match,{name}"]
    assert len(ours.documents) == 3
    assert set(ours.metrics) == {"exact_match,first", "exact_match,whole"}


@pytest.mark.parametrize("task", ["wpn_colours", "shots", "written"])
@pytest.mark.parametrize("multiturn", [False, True])
def test_the_chat_template_is_applied_as_by_lm_eval(tiny_model: Path, folder: Path, task: str, multiturn: bool) -> None:
    model, tokenizer = models.load(tiny_model)
    tokenizer.chat_template = CHAT
    options = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn}
    score = "exact_match,whole" if task == "written" else "acc,none"
    ours = evaluate_task(model, tokenizer, task, include_paths=(folder,), score=score, **options)
    theirs = of_lm_eval((model, tokenizer), folder, task, log_samples=True, **options)
    assert ours.accuracy == theirs[score]
    plain = evaluate_task(model, tokenizer, task, include_paths=(folder,), score=score)
    if task != "written":
        assert plain.documents[0].loglikelihoods != ours.documents[0].loglikelihoods


def test_rows_of_shares_and_groups() -> None:
    def documents(model: str, task: str, scores: list[float]) -> pd.DataFrame:
        rows = {"doc_id": range(len(scores)), "correct": [s == 1.0 for s in scores], "score": scores}
        frame = pd.DataFrame({"model": model, "seed": None if model == "base" else 0, "task": task, **rows})
        return frame.astype({"seed": "Int64"})

    frame = pd.concat(
        [
            documents("base", "one", [0.5, 0.7, 0.9, 0.1]),
            documents("base", "two", [1.0, 0.0]),
            documents("ga", "one", [0.4, 0.7, 0.8, 0.3]),
            documents("ga", "two", [0.0, 0.0]),
        ]
    )
    rows = benchmark_rows(frame, [TaskAverage("w", ("one", "two"), True), TaskAverage("u", ("one", "two"), False)])
    found = {(row.model, row.set): row for row in rows}
    assert found["base", "one"].value == pytest.approx(0.55)
    assert found["base", "one"].ci_low is not None
    assert found["base", "one"].ci_low < 0.55 < (found["base", "one"].ci_high or 0)
    assert found["ga", "one"].delta == pytest.approx(0.0)
    assert found["base", "two"].value == 0.5
    assert found["base", "w"].value == pytest.approx((2.2 + 1) / 6)
    assert found["base", "u"].value == pytest.approx((0.55 + 0.5) / 2)
    assert found["ga", "w"].delta == pytest.approx(-1 / 6)
    assert found["ga", "w"].n == 6
    assert found["ga", "u"].delta == pytest.approx(-0.25)
    turned = {(row.set, row.metric): row.value for row in turned_rows(frame)}
    assert turned == {("one", "lost"): 2, ("one", "gained"): 1, ("two", "lost"): 1, ("two", "gained"): 0}
