from __future__ import annotations

from pathlib import Path

import pytest

from wpn_bench.benchmarks.run import clear_task_cache
from wpn_bench.benchmarks.scores import Score
from wpn_bench.benchmarks.selection import Aggregate, TaskGroup, select
from wpn_bench.errors import UserError


@pytest.fixture
def folder(task_folder: Path) -> Path:
    """The tasks wpn_colours, a, b and c; b and c have the tag `later`; groups of them."""
    for name in "abc":
        tag = "" if name == "a" else "tag: later\n"
        (task_folder / f"{name}.yaml").write_text(f"include: colours.yaml\ntask: {name}\n{tag}")
    average = "aggregate_metric_list: {metric: acc, weight_by_size: %s}\n"
    (task_folder / "inner.yaml").write_text("group: inner\ntask: [a, later]\n" + average % "false")
    (task_folder / "outer.yaml").write_text("group: outer\ntask: [inner, wpn_colours]\n" + average % "true")
    clear_task_cache()
    return task_folder


def test_groups_and_tags_become_tasks(folder: Path) -> None:
    assert select(["later"], [folder]).tasks == ("b", "c")
    found = select(["outer", "a"], [folder])
    assert found.tasks == ("a", "b", "c", "wpn_colours")
    inner = TaskGroup("inner", ("a", "b", "c"), (Aggregate("acc", (), False),))
    outer = TaskGroup("outer", ("a", "b", "c", "wpn_colours"), (Aggregate("acc", (), True),))
    assert set(found.groups) == {inner, outer}
    assert found.preferred("a") == [Score("acc", "*")] * 2


def test_a_group_in_the_list_of_a_group(folder: Path) -> None:
    text = "group: whole\ntask:\n  - {group: part, task: [a, b], aggregate_metric_list: [{metric: acc}]}\n  - task: c\n"
    (folder / "whole.yaml").write_text(text)
    clear_task_cache()
    found = select(["whole"], [folder])
    assert found.tasks == ("a", "b", "c")
    assert [group.name for group in found.groups] == ["whole::part"]


def test_a_group_is_averaged_only_over_scores_of_all_its_tasks() -> None:
    group = TaskGroup("g", ("a", "b"), (Aggregate("acc", ("strict",), True), Aggregate("em", (), False)))
    assert group.aggregate_of([Score("em"), Score("em", "x")]) == group.aggregates[1]
    assert group.aggregate_of([Score("acc"), Score("acc")]) is None
    assert group.aggregate_of([Score("acc", "strict"), Score("em")]) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("group: g\ntask: [g]\n", "contains itself"),
        ("group: g\ntask: [{task: a, num_fewshot: 5}]\n", "sets num_fewshot for 'a'"),
        ("group: g\ntask: [a]\nnum_fewshot: 3\n", "sets num_fewshot for 'g'"),
        ("group: g\ntask: [yes]\n", "not the name of a task"),
        ("group: g\ntask: [a]\naggregate_metric_list: [{aggregation: mean}]\n", "aggregate_metric_list"),
        ("group: g\ntask: [a]\naggregate_metric_list: [{metric: acc, aggregation: max}]\n", "aggregate_metric_list"),
    ],
)
def test_a_wrong_group_is_one_line(folder: Path, text: str, why: str) -> None:
    (folder / "g.yaml").write_text(text)
    clear_task_cache()
    with pytest.raises(UserError, match=why):
        select(["g"], [folder])


def test_lm_evals_groups_tags_and_patterns(folder: Path) -> None:
    """Reading lm-eval's own files takes seconds, so one test asks all questions."""
    found = select(["mmlu"], [folder])
    assert len(found.tasks) == 57
    assert {group.name for group in found.groups} == {
        "mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities",
    }  # fmt: skip
    assert select(["ai2_arc"], [folder]).tasks == ("arc_challenge", "arc_easy")
    assert set(select(["truthfulqa"], [folder]).tasks) == {"truthfulqa_gen", "truthfulqa_mc1", "truthfulqa_mc2"}
    assert select(["arc_eas*"], [folder]).tasks == ("arc_easy",)
    with pytest.raises(UserError, match="no task matches 'nothing_"):
        select(["nothing_*"], [folder])
    with pytest.raises(UserError) as raised:
        select(["truthfulqa_mc"], [folder])
    assert "'truthfulqa_mc1'" in raised.value.hint
