from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.prompts import Item, item_id
from wpn_bench.unlearn.vet import vet


class ByWord:
    """Calls a text with "rude" in it harmful, and cannot judge one with "odd"."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, texts: Sequence[str], advance: object = None) -> list[float | None]:
        self.asked += texts
        return [None if "odd" in t else 0.5 if "rude" in t else 0.1 for t in texts]


def item(prompt: str, harmful: tuple[str, ...], harmless: tuple[str, ...]) -> Item:
    return Item(item_id(prompt), prompt, harmful=harmful, harmless=harmless)


def test_harmless_references_that_the_judge_contradicts_are_dropped() -> None:
    items = [
        item("a", ("rude", "mild"), ("kind", "rude too")),
        item("b", ("rude",), ("rude",)),
        item("c", ("mild",), ("odd",)),
        item("d", ("rude",), ()),
    ]
    left = vet(items, ByWord(), 0.5)  # type: ignore[arg-type]
    assert [i.prompt for i in left] == ["a", "c", "d"]
    assert left[0].harmless == ("kind",)
    # The judge sees abusive words only: what it finds mild may be harmful all the same.
    assert [i.harmful for i in left] == [("rude", "mild"), ("mild",), ("rude",)]


def test_each_text_is_judged_once() -> None:
    judge = ByWord()
    items = [item("a", ("rude",), ("kind", "nice")), item("b", ("rude",), ("kind",))]
    vet(items, judge, 0.5)  # type: ignore[arg-type]
    assert judge.asked == ["kind", "nice"]


@given(st.lists(st.lists(st.sampled_from(["kind", "rude", "odd", "nice"]), min_size=1, max_size=4), max_size=6))
def test_what_is_left_is_a_part_of_what_was_and_is_left_again(sides: list[list[str]]) -> None:
    items = [item(str(k), ("rude",), tuple(side)) for k, side in enumerate(sides)]
    left = vet(items, ByWord(), 0.5)  # type: ignore[arg-type]
    by_id = {i.id: i for i in items}
    assert all(set(i.harmless) <= set(by_id[i.id].harmless) and i.harmless for i in left)
    assert vet(left, ByWord(), 0.5) == left  # type: ignore[arg-type]
