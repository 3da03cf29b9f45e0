from __future__ import annotations

from wpn_bench.pipeline.inputs import response_notes
from wpn_bench.prompts import Item, PromptSet


def forget(*items: Item, left_out: int = 0) -> PromptSet:
    return PromptSet("forget", "forget", items, left_out=left_out)


def test_prompts_without_a_response_and_with_the_same_one_on_both_sides_are_counted() -> None:
    good = Item("1", "One?", harmful=("a",), harmless=("b",))
    both = Item("2", "Two?", harmful=("a", "c"), harmless=("b", "c"))
    assert response_notes(forget(good)) == []
    (note,) = response_notes(forget(good, left_out=3))
    assert "3 prompts have no harmful or no harmless response" in note
    (note,) = response_notes(forget(good, both))
    assert "1 of 2 prompts have a response that is called harmful and harmless" in note
