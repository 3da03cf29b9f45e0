from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.prompts import FormatTemplate, Item
from wpn_bench.unlearn.batches import Batch, Batches

TEMPLATE = FormatTemplate("Q: {prompt} A:")
ALL = frozenset({"harmless", "harmful", "retain"})


@pytest.fixture
def make(small_lm: Path, items: list[Item], texts: list[str]) -> Callable[..., Batches]:
    def build(**changes: Any) -> Batches:
        settings: dict[str, Any] = {
            "template": TEMPLATE,
            "uses": ALL,
            "steps": 20,
            "batch_size": 3,
            "retain_batch_size": 2,
            "negatives": 3,
            "max_length": 128,
            "retain_max_length": 128,
            "seed": 0,
        } | changes
        chosen = settings.pop("items", items)
        return Batches(models.load_tokenizer(small_lm), chosen, settings.pop("texts", texts), **settings)

    return build


def decoded(batches: Batches, part: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """(what stands before the response, the response) of each row, without special tokens."""
    out = []
    for ids, response, attention in zip(part["input_ids"], part["response_mask"], part["attention_mask"], strict=True):
        before = ids[(attention == 1) & (response == 0)]
        after = ids[response == 1]
        out.append(tuple(batches.tokenizer.decode(x, skip_special_tokens=True) for x in (before, after)))
    return out  # type: ignore[return-value]


def test_rows_hold_prompt_response_and_end_of_text(make: Callable[..., Batches], items: list[Item]) -> None:
    batches = make()
    part = batches[0]["harmless"]
    known = {f"Q: {i.prompt} A:": [" " + y for y in i.harmless] for i in items}
    for prompt, response in decoded(batches, part):
        assert response in known[prompt]
    ends = [int(ids[response == 1][-1]) for ids, response in zip(part["input_ids"], part["response_mask"], strict=True)]
    assert set(ends) == {batches.tokenizer.eos_token_id}
    assert part["owner"].tolist() == [0, 1, 2]


def test_padding_is_on_the_right_and_never_counts(make: Callable[..., Batches]) -> None:
    batches = make()
    for part in batches[0].values():
        attention, response = part["attention_mask"], part["response_mask"]
        assert (attention.diff(dim=1) <= 0).all()
        assert (attention.sum(1).max() == attention.shape[1]).all()
        assert (response <= attention).all()
        assert (part["input_ids"][attention == 0] == batches.tokenizer.pad_token_id).all()
    rows = Batch.from_tensors(batches[0]).harmless
    assert rows is not None
    assert torch.equal(rows.prompt_mask + rows.response_mask, rows.attention_mask)


def test_negatives_stand_together_and_begin_with_ones_own(make: Callable[..., Batches], items: list[Item]) -> None:
    batches = make()
    prompts = {f"Q: {i.prompt} A:": i for i in items}
    for step in range(5):
        tensors = batches[step]
        asked = [p for p, _ in decoded(batches, tensors["harmless"])]
        rows = decoded(batches, tensors["harmful"])
        assert tensors["harmful"]["owner"].tolist() == [k for k in range(3) for _ in range(3)]
        for k, prompt in enumerate(asked):
            mine = rows[3 * k : 3 * k + 3]
            assert {p for p, _ in mine} == {prompt}
            own = {" " + y for y in prompts[prompt].harmful}
            others = {" " + y for i in items for y in i.harmful} - own
            assert [y in own for _, y in mine] == [True, True, False]
            assert mine[2][1] in others
            assert mine[0] != mine[1]


def test_a_lonely_item_gives_its_own_negatives_again(make: Callable[..., Batches], items: list[Item]) -> None:
    batches = make(items=items[:1], negatives=5)
    rows = decoded(batches, batches[0]["harmful"])
    assert len(rows) == 5
    assert {y for _, y in rows} == {" " + y for y in items[0].harmful}


def test_plain_text_is_all_response(make: Callable[..., Batches], texts: list[str]) -> None:
    batches = make()
    part = batches[0]["retain"]
    assert torch.equal(part["response_mask"], part["attention_mask"])
    assert all(text in texts for _, text in decoded(batches, part))


@pytest.mark.parametrize(("part", "size", "n"), [("harmless", 3, 8), ("retain", 2, 5)])
def test_every_epoch_sees_everything_once(make: Callable[..., Batches], part: str, size: int, n: int) -> None:
    batches = make(steps=n * 4)
    seen = [row[0] or row[1] for step in range(n * size) for row in decoded(batches, batches[step][part])][: n * size]
    epochs = [seen[k : k + n] for k in range(0, n * size, n)]
    for epoch in epochs:
        assert len(set(epoch)) == n
    assert len({tuple(e) for e in epochs}) > 1  # in another order


def test_the_same_seed_gives_the_same_batches_in_any_order(make: Callable[..., Batches]) -> None:
    one, other = make(), make()
    for step in (7, 0, 7, 3):
        for name in ALL:
            for field, value in one[step][name].items():
                assert torch.equal(value, other[step][name][field])
    assert any(
        one[0]["harmless"]["input_ids"].shape != b.shape or not torch.equal(one[0]["harmless"]["input_ids"], b)
        for b in (make(seed=1)[0]["harmless"]["input_ids"],)
    )


def test_every_response_of_an_item_is_drawn(make: Callable[..., Batches], items: list[Item]) -> None:
    batches = make(steps=60)
    seen = Counter(y for step in range(60) for _, y in decoded(batches, batches[step]["harmless"]))
    assert set(seen) == {" " + y for i in items for y in i.harmless}


@pytest.mark.parametrize("uses", [{"harmless"}, {"harmful"}, {"harmless", "retain"}])
def test_only_what_is_used_is_made(make: Callable[..., Batches], uses: set[str]) -> None:
    tensors = make(uses=frozenset(uses))[0]
    assert set(tensors) == uses
    batch = Batch.from_tensors(tensors)
    for name in ALL:
        assert (getattr(batch, name) is not None) == (name in uses)


def test_a_batch_is_never_larger_than_the_set(make: Callable[..., Batches], items: list[Item]) -> None:
    batches = make(batch_size=32, retain_batch_size=32)
    rows = decoded(batches, batches[0]["harmless"])
    assert len({p for p, _ in rows}) == len(rows) == len(items)
    assert len(batches[0]["retain"]["input_ids"]) == 5
    assert "retain" not in make(texts=[])[0]


def test_length_is_kept(make: Callable[..., Batches]) -> None:
    """The response is cut first, down to a quarter; then the prompt loses its middle. Its room is filled in words."""
    long = Item("1", "word " * 80 + "END", harmful=("h",), harmless=("answer " * 80,))
    batches = make(items=[long], max_length=32)
    part = batches[0]["harmless"]
    assert part["input_ids"].shape[1] == 32
    assert 8 <= int(part["response_mask"].sum()) <= 12
    ((before, _),) = decoded(batches, part)
    assert before.startswith("Q: word word")
    assert before.endswith("word END A:")
    short = Item("2", "Why?", harmful=("h",), harmless=("answer " * 80,))
    part = make(items=[short], max_length=32)[0]["harmless"]
    n_prompt = int((part["attention_mask"] - part["response_mask"]).sum())
    ((before, _),) = decoded(batches, part)
    assert before == "Q: Why? A:"
    assert int(part["response_mask"].sum()) == 32 - n_prompt


def test_plain_text_has_a_length_of_its_own(make: Callable[..., Batches]) -> None:
    tensors = make(texts=["word " * 80], max_length=16, retain_max_length=24)[0]
    assert tensors["retain"]["input_ids"].shape[1] == 24
    assert tensors["harmless"]["input_ids"].shape[1] == 16


def test_steps_end(make: Callable[..., Batches]) -> None:
    batches = make(steps=4)
    assert len(batches) == 4
    for step in (4, -1):
        with pytest.raises(IndexError):
            batches[step]


@pytest.fixture
def benign() -> list[Item]:
    """Three benign items, whose refusals are their own."""
    who = ("one", "two", "three")
    return [Item(k, f"Where is house {k}?", harmful=(f"No {k}.", f"Never {k}."), harmless=(f"At {k}.",)) for k in who]


@pytest.mark.parametrize(("size", "share", "n"), [(4, 0.5, 2), (4, 0.25, 1), (3, 0.9, 2), (4, 0.01, 1), (8, 0.5, 3)])
def test_benign_items_have_a_fixed_share_of_each_batch(
    make: Callable[..., Batches], benign: list[Item], size: int, share: float, n: int
) -> None:
    batches = make(batch_size=size, benign=benign, benign_share=share)
    asked = [[prompt for prompt, _ in decoded(batches, batches[k]["harmless"])] for k in range(6)]
    mine = {f"Q: {i.prompt} A:" for i in benign}
    for prompts in asked:
        assert [p in mine for p in prompts] == [False] * (size - n) + [True] * n  # three items are all there are
    assert len({p for prompts in asked for p in prompts} & mine) == 3
    again = make(batch_size=size, benign=benign, benign_share=share)
    assert torch.equal(again[5]["harmful"]["input_ids"], batches[5]["harmful"]["input_ids"])


def test_a_refusal_is_never_the_negative_of_an_item_to_forget(
    make: Callable[..., Batches], benign: list[Item], items: list[Item]
) -> None:
    batches = make(batch_size=4, benign=benign, negatives=4)
    refusals = {" " + y for i in benign for y in i.harmful}
    for step in range(5):
        rows = decoded(batches, batches[step]["harmful"])
        assert [y in refusals for _, y in rows] == [False] * 8 + [True] * 8


def test_a_method_without_harmless_responses_keeps_the_answers_as_text(
    make: Callable[..., Batches], benign: list[Item], texts: list[str]
) -> None:
    uses = frozenset({"harmful", "retain"})
    batches, without = make(uses=uses, retain_batch_size=4, benign=benign), make(uses=uses, retain_batch_size=4)
    said = decoded(batches, batches[0]["retain"])
    assert [text in texts for _, text in said] == [True, True, False, False]
    assert {text for _, text in said[2:]} <= {f"Q: {i.prompt} A: {i.harmless[0]}" for i in benign}
    assert batches[0]["retain"]["owner"].tolist() == [0, 1, 2, 3]
    assert torch.equal(batches[0]["harmful"]["input_ids"], without[0]["harmful"]["input_ids"])
    assert "retain" not in make(uses=frozenset({"harmful"}), benign=benign)[0]


def test_all_methods_can_keep_the_answers_as_text(make: Callable[..., Batches], benign: list[Item]) -> None:
    """Then nothing changes about the items to forget."""
    batches, without = make(benign=benign, benign_use="texts"), make()
    said = decoded(batches, batches[0]["retain"])
    assert [text in {f"Q: {i.prompt} A: {i.harmless[0]}" for i in benign} for _, text in said] == [False, True]
    for part in ("harmless", "harmful"):
        assert torch.equal(batches[0][part]["input_ids"], without[0][part]["input_ids"])
