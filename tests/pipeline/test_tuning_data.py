"""Which benign prompts tuning measures, and which are left to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wpn_bench import config as configuration
from wpn_bench.errors import UserError
from wpn_bench.pipeline.tuning_data import TuningData, read_tuning_data
from wpn_bench.preflight.sets import sets_of
from wpn_bench.prompts import Item, PromptSet, TextSet, item_id

TEXTS = TextSet("texts", "retain", tuple(f"The {k} geese went home early." for k in range(20)))
WORDS = [
    "bake",
    "mill",
    "teach",
    "farm",
    "sail",
    "dig",
    "paint",
    "sing",
    "cook",
    "mend",
    "weave",
    "carve",
    "ride",
    "swim",
    "climb",
    "count",
]


def of(name: str, words: list[str], after: str) -> PromptSet:
    asked = [f"How does one learn to {word} {after}?" for word in words]
    return PromptSet(name, "benign", tuple(Item(item_id(text), text) for text in asked))


def read(
    benign: PromptSet | None, others: list[PromptSet], notes: list[str], **changes: Any
) -> tuple[TuningData, PromptSet | None]:
    settings = {"tune": 2, "tune_benign": None, **changes}
    config = configuration.build("lab").model_copy(update=settings)
    validation = of("validation", ["whistle"], "on a mountain")
    found, _, left = read_tuning_data(config, sets_of(config), (), validation, others, TEXTS, None, benign, None, notes)
    return found, left


def test_a_tenth_of_the_prompts_to_train_on_is_held_back() -> None:
    notes: list[str] = []
    trained = of("benign_prompts", WORDS, "in a village")
    for changes in ({}, {"tune_benign": "lab_benign_training", "benign_prompts": "lab_benign_training"}):
        found, left = read(trained, [], notes, **changes)
        assert found.benign is not None
        assert left is not None
        assert (len(found.benign.items), found.benign.name) == (2, "tune_benign")
        assert {*found.benign.items, *left.items} == set(trained.items)
        assert not {*found.benign.items} & {*left.items}
    assert "2 of the benign prompts are held back for tuning, and are not trained on" in notes
    with pytest.raises(UserError, match="no benign prompt left to train on"):
        read(of("benign_prompts", WORDS[:1], "in a village"), [], [])


def test_without_benign_prompts_a_note_says_what_is_not_counted() -> None:
    notes: list[str] = []
    found, left = read(None, [], notes)
    assert (found.benign, left) == (None, None)
    assert any("tuning does not count refusals" in note for note in notes)


def test_prompts_of_other_sets_are_left_out_of_those_named_for_tuning(tmp_path: Path) -> None:
    """The prompts to train on stay as they are without tuning."""
    file = tmp_path / "mine.jsonl"
    rows = [*of("x", WORDS[:3], "in a village").items, *of("x", WORDS[3:8], "at sea").items]
    file.write_text("".join(json.dumps({"prompt": item.request}) + "\n" for item in rows))
    notes: list[str] = []
    trained, tested = of("benign_prompts", WORDS[:2], "in a village"), of("test", WORDS[2:3], "in a village")
    found, left = read(trained, [tested], notes, tune_benign=str(file))
    assert left == trained
    assert found.benign is not None
    assert {item.request for item in found.benign.items} == {item.request for item in rows[3:]}
    assert any(note.startswith("3 of 8 benign prompts to tune on are in another set") for note in notes)
    with pytest.raises(UserError, match="every prompt of 'tune_benign' equals"):
        read(None, [PromptSet("all", "benign", tuple(rows))], [], tune_benign=str(file))
