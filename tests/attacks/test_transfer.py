"""Ready-made attacked prompts from a file: how they find their prompts, and what is said if they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.workshop import Workshop
from wpn_bench.attacks import AttackContext, attacked, own_attacks
from wpn_bench.errors import UserError
from wpn_bench.prompts import Item, PromptSet, Template, item_id
from wpn_bench.runs.finished import load_run

CONTEXT = Template.parse("Q: {prompt}\n A:")
PROMPTS = ("How to {x}?", "Why {prompt}?", "Wer bäckt?")
SET = PromptSet("in_domain", "in_domain", tuple(Item(item_id(prompt), prompt) for prompt in PROMPTS))


def written(folder: Path, rows: list[dict[str, Any]], name: str = "found.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def asked(name: str, *files: str) -> dict[str, str]:
    got = attacked(SET, name, AttackContext(CONTEXT, own=own_attacks(files)))
    assert all(item.id == item_id(item.original) for item in got.items)
    return {item.original: item.prompt for item in got.items}


def test_each_prompt_gets_its_own_text_and_no_other_prompt_is_asked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "  " + PROMPTS[1], "attacked": "{prompt} {y} !! <b>", "score": 3},
        {"prompt": PROMPTS[0], "attacked": None},
        {"id": item_id(PROMPTS[2]), "attacked": " zwei ! ! \n", "prompt": ""},
        {"prompt": "of another set", "attacked": "x"},
    ]
    assert asked("found", written(tmp_path, rows)) == {PROMPTS[1]: "{prompt} {y} !! <b>", PROMPTS[2]: " zwei ! ! \n"}


def test_a_csv_with_a_byte_order_mark_and_two_attacks(tmp_path: Path) -> None:
    file = tmp_path / "found.csv"
    file.write_text(
        f'name,prompt,attacked\ntwo_lines,{PROMPTS[0]},"one,\ntwo"\nTHREE,{PROMPTS[0]},three\n', encoding="utf-8-sig"
    )
    assert asked("two_lines", str(file)) == {PROMPTS[0]: "one,\ntwo"}
    assert asked("THREE", str(file)) == {PROMPTS[0]: "three"}


def test_an_id_of_another_numbering_does_not_disturb(tmp_path: Path) -> None:
    assert asked("found", written(tmp_path, [{"id": 7, "prompt": PROMPTS[0], "attacked": "x"}])) == {PROMPTS[0]: "x"}


def test_ready_made_prompts_and_templates_in_one_file(tmp_path: Path) -> None:
    file = written(tmp_path, [{"template": "Oh, {prompt}"}, {"prompt": PROMPTS[0], "attacked": "x"}])
    assert list(own_attacks([file])) == ["found-1", "found"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "attacked": "x"}], "none of the 3 prompts of 'in_domain'"),
        ([{"attacked": "x"}], "row 1 does not say which prompt"),
        ([{"prompt": "a", "attacked": ["x", "y"]}], "`attacked` is no text, but list"),
        ([{"prompt": ["a"], "attacked": "x"}], "`prompt` is no text, but list"),
        (
            [{"prompt": "a", "attacked": "x"}, {"prompt": "a", "attacked": "y"}],
            r"row 2: .*another attacked prompt \(row 1\)",
        ),
        ([{"prompt": "a", "attacked": "a"}], "all attacked prompts of 'found' are the prompts themselves"),
        ([{"prompt": "a", "attacked": ""}], "all attacked prompts of 'found' are empty"),
        ([{"prompt": "a", "attacked": "x", "template": "{prompt}!"}], "both `template` and `attacked`"),
        ([{"prompt": "a", "attacked": "x", "name": "typos"}], "'typos' is already the name of an attack"),
        ([{"prompt": "a", "attacked": "x", "name": "💥"}], "cannot be a name"),
        ([{"prompt": "a", "jailbreak": "x"}], "several texts"),
    ],
)
def test_a_file_that_cannot_work_is_one_line(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        asked("found", written(tmp_path, rows))


def test_two_files_with_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    rows = [{"prompt": PROMPTS[0], "attacked": "x"}]
    with pytest.raises(UserError, match=r"'found' is already the name of another attack of found\.jsonl"):
        own_attacks([written(tmp_path, rows), written(tmp_path / "b", rows)])


@pytest.mark.slow
def test_a_run_asks_every_model_the_prompts_of_the_file(
    tmp_path: Path, small_opt: Path, triples: list[dict[str, Any]]
) -> None:
    workshop = Workshop(tmp_path, small_opt, triples)
    every = {"attacks": ("typos",), "benchmarks": (), "stages": ("train", "harmless", "attack")}
    workshop.run(**every)
    plain = load_run(tmp_path / "run").samples_with(("model", "set", "item_id", "prompt"))
    first = plain[plain["set"] == "typos"].iloc[0]
    file = written(tmp_path, [{"prompt": str(first["prompt"]), "attacked": "ready made !"}])
    results = workshop.run("second", **every, attack_files=(file,))
    assert results["run"]["failed"] == []
    samples = load_run(tmp_path / "second").samples_with(("model", "set", "item_id", "input"))
    rows = samples[samples["set"] == "found"]
    assert {str(model) for model in rows["model"]} == {"base", "sft"}
    assert set(rows["item_id"]) == {first["item_id"]}
    assert all("ready made !" in str(text) for text in rows["input"])
    assert any("attacked prompts for 1 of the" in note for note in results["run"]["notes"])
