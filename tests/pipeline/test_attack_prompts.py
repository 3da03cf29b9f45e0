"""Attacks that are left out, because a model would be asked something else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wpn_bench.pipeline import attack_prompts as module
from wpn_bench.prompts import ChatTemplate, Item, PromptSet

LAST = "{{ messages[-1].content }}"


@pytest.mark.parametrize(("one_turn", "left"), [(True, ["typos"]), (False, ["few_shot", "typos", "crescendo"])])
def test_conversations_are_left_out_if_a_template_writes_one_turn(
    monkeypatch: pytest.MonkeyPatch, one_turn: bool, left: list[str]
) -> None:
    monkeypatch.setattr(module, "_fitting", lambda *given: None)
    config: Any = SimpleNamespace(
        attack_files=(), attacks=("few_shot", "typos", "crescendo"), gradient_attacks={}, quantise=()
    )
    forget = PromptSet(
        "forget", "forget", tuple(Item(str(k), f"Question {k}?", harmful=("No.",)) for k in range(6)), {}
    )
    asked = PromptSet("in_domain", "in_domain", (Item("a", "How do I mend a kite?"),), {})
    notes: list[str] = []
    model: Any = None
    template = ChatTemplate(LAST, None, ())
    made = module.attack_prompts(config, template, model, forget, asked, set(), notes, one_turn=one_turn)
    assert [one.name for _, one in made] == left
    told = "left out: few_shot, crescendo, because the chat template of a model writes only one turn"
    assert any(note.startswith(told) for note in notes) == one_turn
