"""A slip in a task file is one line with file and field, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from wpn_bench.benchmarks.run import describe, rehearse_task
from wpn_bench.benchmarks.scores import Score
from wpn_bench.errors import UserError

FIELDS = {
    "dataset_path": "json",
    "dataset_kwargs": "{data_files: {test: DATA}}",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": '"Q: {{q}} A:"',
    "doc_to_target": "right",
    "doc_to_choice": '"{{options}}"',
    "metric_list": "[{metric: acc, aggregation: mean, higher_is_better: true}]",
}
GENERATES = {"output_type": "generate_until", "doc_to_choice": None, "doc_to_target": '"{{options[0]}}"'}
EXACT = {"metric_list": "[{metric: exact_match, aggregation: mean, higher_is_better: true}]"}


def check(folder: Path, changes: dict[str, str | None], more: str = "") -> None:
    """Write the task `slip` with other fields (None: left out), and check it as a run does."""
    fields = {key: value for key, value in {**FIELDS, **changes}.items() if value is not None}
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    data = folder.parent / "colours.jsonl"
    (folder / "slip.yaml").write_text("task: slip\n" + text.replace("DATA", str(data)) + more)
    rehearse_task(describe("slip", (folder,)), (folder,))


def test_a_right_task_passes(task_folder: Path) -> None:
    check(task_folder, {})
    check(task_folder, {"doc_to_target": '"{{options[right]}}"'})  # the text of the choice, as lm-eval allows


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"doc_to_choice": "[yes, no]"}, "doc_to_choice[0]"),
        ({"doc_to_choice": "[1, 2]"}, "doc_to_choice[0]"),
        ({"doc_to_choice": "[a, 2024-01-01]"}, "doc_to_choice[1]"),
        ({"doc_to_choice": "[a, null]"}, "doc_to_choice[1]"),
        ({"doc_to_choice": "{a: 1.5}"}, "doc_to_choice[a]"),
        ({"doc_to_choice": '[a, ""]'}, "doc_to_choice[1]"),
        ({"doc_to_choice": '"{{right}}"'}, "doc_to_choice"),
        ({"doc_to_choice": '"{{[1, 2]}}"'}, "doc_to_choice"),
        ({"doc_to_choice": '"{{options"'}, "doc_to_choice"),
        ({"doc_to_choice": None}, "doc_to_choice"),
        ({"doc_to_text": "yes"}, "doc_to_text"),
        ({"doc_to_text": "2024-01-01"}, "doc_to_text"),
        ({"doc_to_text": None}, "doc_to_text"),
        ({"doc_to_text": '"{{question}}"'}, "doc_to_text"),
        ({"doc_to_text": '"{{q"'}, "doc_to_text"),
        ({"doc_to_text": '"{{q | no_filter}}"'}, "doc_to_text"),
        ({"doc_to_text": "!function helper.missing"}, "helper"),
        ({"doc_to_text": "!function nowhere.text"}, "nowhere"),
        ({"doc_to_target": "no"}, "doc_to_target"),
        ({"doc_to_target": '"{{answer}}"'}, "doc_to_target"),
        ({"doc_to_target": "2"}, "doc_to_target"),
        ({"doc_to_target": "-1"}, "doc_to_target"),
        ({"doc_to_target": '"{{right + 1}}"'}, "doc_to_target"),  # right for some documents only
        ({"doc_to_target": '"nothing"'}, "doc_to_target"),
        ({"doc_to_target": None}, "doc_to_target"),
        ({"test_split": "tset"}, "test_split"),
        ({"test_split": None}, "test_split"),
        ({"test_split": "off"}, "test_split"),
        ({"fewshot_split": "train"}, "fewshot_split"),
        ({"output_type": "multiple_choices"}, "output_type"),
        ({"process_docs": '"helper.choices"'}, "process_docs"),
        ({"process_docs": "!function helper.choices"}, "process_docs"),
        ({"process_results": "!function helper.choices"}, "process_results"),
        ({"description": "yes"}, "description"),
        ({"target_delimiter": "1"}, "target_delimiter"),
        ({"num_fewshot": '"5"'}, "num_fewshot"),
        ({"dataset_name": "2024"}, "dataset_name"),
        ({"dataset_path": None}, "dataset_path"),
        ({"metric_list": "acc"}, "metric_list"),
        ({"metric_list": "[acc]"}, "metric_list"),
        ({"metric_list": "[{metric: acc, higher_is_better: 1}]"}, "metric_list[0].higher_is_better"),
        ({"doc_to_image": "q"}, "doc_to_image"),
        ({"doc_to_txt": "q"}, "doc_to_txt"),
        ({**GENERATES, **EXACT, "filter_list": "[{filter: [{function: take_first}]}]"}, "filter_list"),
        ({**GENERATES, **EXACT, "filter_list": "[{name: a, filter: [{function: nothing}]}]"}, "nothing"),
        ({**GENERATES, **EXACT, "generation_kwargs": "{until: [no]}"}, "generation_kwargs.until"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_with_the_field(task_folder: Path, changes: dict[str, str | None], key: str) -> None:
    with pytest.raises(UserError) as raised:
        check(task_folder, changes)
    assert key in raised.value.problem
    assert "\n" not in raised.value.problem
    assert "slip" in raised.value.problem + raised.value.hint
    assert raised.value.hint


def test_a_repeated_key_is_said(task_folder: Path) -> None:
    with pytest.raises(UserError, match="doc_to_text is given twice"):
        check(task_folder, {}, more='doc_to_text: "{{q}}"\n')


def test_an_include_of_itself_is_said(task_folder: Path) -> None:
    with pytest.raises(UserError, match="includes itself"):
        check(task_folder, {"include": "slip.yaml"})


def test_the_included_file_is_named(task_folder: Path) -> None:
    (task_folder / "base.yaml").write_text("doc_to_choice: [on, off]\n")
    with pytest.raises(UserError, match=r"base\.yaml: doc_to_choice\[0\]"):
        check(task_folder, {"include": "base.yaml", "doc_to_choice": None})


def test_the_name_of_a_task_is_text(task_folder: Path) -> None:
    (task_folder / "named.yaml").write_text("task: 2024\n")
    with pytest.raises(UserError, match="name of the task is 2024"):
        check(task_folder, {})


def test_the_score_of_a_task(task_folder: Path) -> None:
    """Named filters, and metrics that are no accuracies."""

    def score(changes: dict[str, str | None], asked: dict[str, str] | None = None) -> str:
        fields = {key: value for key, value in {**FIELDS, **GENERATES, **changes}.items() if value is not None}
        (task_folder / "slip.yaml").write_text("task: slip\n" + "".join(f"{k}: {v}\n" for k, v in fields.items()))
        describe.__globals__["clear_task_cache"]()
        return describe("slip", (task_folder,), resolve=False, metrics=asked).score

    one = "{name: %s, filter: [{function: take_first}]}"
    filters = {"filter_list": f"[{one % 'strict-match'}, {one % 'flexible-extract'}]"}
    assert score(EXACT) == "exact_match,none"
    assert score({**EXACT, **filters}) == "exact_match,strict-match"
    assert score({**EXACT, **filters}, {"sl*": "exact_match,flexible-extract"}) == "exact_match,flexible-extract"
    assert score({**FIELDS}) == ""
    assert score({**FIELDS, "process_results": "!function helper.choices"}) == "acc,none"
    assert score({"metric_list": "[{metric: em, aggregation: mean, higher_is_better: true}]"}) == "em,none"
    with pytest.raises(UserError, match="has no filter 'flexible'"):
        score({**EXACT, **filters}, {"slip": "exact_match,flexible"})
    with pytest.raises(UserError, match="has no metric 'acc'"):
        score(EXACT, {"slip": "acc"})
    assert score({"metric_list": "[{metric: ter, aggregation: ter, higher_is_better: false}]"}) == "ter,none"
    assert score({"metric_list": "[{metric: bleu, aggregation: bleu, higher_is_better: true}]"}) == "bleu,none"
    with pytest.raises(UserError, match="several metrics but no accuracy: a, b"):
        score({"metric_list": "[{metric: a, higher_is_better: true}, {metric: b, higher_is_better: false}]"})
    assert Score.parse("a , b") == Score("a", "b")
    assert Score.parse("a,,lower") == Score("a", "none", "lower")
