from __future__ import annotations

import pytest

from wpn_bench.prompts import Item, item_id
from wpn_bench.unlearn.references import without_refusals


def detect(prompt: str, response: str) -> dict[str, bool]:
    return {"refusal": response.startswith("no")}


def item(prompt: str, *harmless: str) -> Item:
    return Item(item_id(prompt), prompt, harmful=("bad",), harmless=harmless)


ITEMS = [item("both", "no", "fine", "no way", "good"), item("refusals", "no"), item("answers", "fine"), item("none")]


@pytest.mark.parametrize(
    ("keep_last", "expected"),
    [
        (True, {"both": ("fine", "good"), "refusals": ("no",), "answers": ("fine",), "none": ()}),
        (False, {"both": ("fine", "good"), "answers": ("fine",), "none": ()}),
    ],
)
def test_an_item_keeps_its_answers_in_order(keep_last: bool, expected: dict[str, tuple[str, ...]]) -> None:
    left = without_refusals(ITEMS, detect, keep_last=keep_last)
    assert {one.prompt: one.harmless for one in left} == expected
    assert all(one.harmful == ("bad",) for one in left)


def test_the_detector_reads_the_prompt_of_the_item() -> None:
    left = without_refusals([item("a", "x"), item("b", "x")], lambda p, r: {"refusal": p == "a"}, keep_last=False)
    assert [one.prompt for one in left] == ["b"]
