"""The soft prompt: what it reaches, that its vectors are read as tokens are, and what the stage leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wpn_bench import models
from wpn_bench.attacks.gcg import GCGConfig, search_suffix
from wpn_bench.attacks.search import SEARCH
from wpn_bench.attacks.soft_prompt import (
    SoftPromptConfig,
    respond_after,
    run_soft_prompt_stage,
    search_soft_prompts,
    virtual_tokens,
)
from wpn_bench.attacks.suffix_slots import find_slots
from wpn_bench.engine.generation import Decoding, generate
from wpn_bench.errors import UserError
from wpn_bench.harmless import stages
from wpn_bench.prompts import Item
from wpn_bench.prompts import items as prompts_items

from .searching import ITEMS, TEMPLATE, plain_loss, stage_context

SMALL = SoftPromptConfig(steps=20, suffix_tokens=6, target_tokens=5)
DECODING = Decoding(max_new_tokens=8, stop=(" A:",), batch_size=2)


@pytest.mark.parametrize("universal", [False, True])
def test_it_reaches_a_lower_loss_than_any_suffix_found(small_lm: Path, universal: bool) -> None:
    model, tokenizer = models.load(small_lm)
    config = SMALL.model_copy(update={"universal": universal})
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, config, 256)
    found = search_soft_prompts(model, slots, config)
    hard = GCGConfig(steps=4, candidates=24, topk=16, suffix_tokens=6, target_tokens=5)
    suffixes = [search_suffix(model, tokenizer, g, hard) for g in ([slots] if universal else slots.one_by_one())]
    assert len(found) == len(suffixes)
    for soft, suffix in zip(found, suffixes, strict=True):
        assert soft.items == suffix.items
        assert soft.first_loss == pytest.approx(suffix.first_loss, rel=1e-4)
        assert soft.best_loss < suffix.best_loss


def test_the_vectors_have_the_loss_it_tells(small_lm: Path) -> None:
    model, tokenizer = models.load(small_lm)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    told: list[int] = []
    found = search_soft_prompts(model, slots, SMALL, told.append)
    assert sum(told) == 3 * SMALL.steps
    for result, slot in zip(found, slots.slots, strict=True):
        loss, reached = plain_loss(model, slot, result.vectors)
        assert result.best_loss == pytest.approx(loss.item(), rel=1e-3)
        assert result.best_loss == min(result.losses)
        assert result.reached == (reached,)
        assert len(result.losses) == SMALL.steps + 1
        (alone,) = search_soft_prompts(model, find_slots([slot.item], tokenizer, TEMPLATE, SMALL, 256), SMALL)
        # Rounding grows from step to step, so that only the first ones can be held against each other.
        assert alone.losses[:2] == pytest.approx(result.losses[:2], rel=1e-3)
    one_for_all = SMALL.model_copy(update={"universal": True})
    (shared,) = search_soft_prompts(model, slots, one_for_all)
    plain = [plain_loss(model, slot, shared.vectors) for slot in slots.slots]
    assert shared.best_loss == pytest.approx(sum(loss.item() for loss, _ in plain) / 3, rel=1e-3)
    assert shared.reached == tuple(hit for _, hit in plain)


def test_vectors_are_read_as_tokens_are(small_lm: Path) -> None:
    """The embeddings of a suffix's tokens give the responses to its text, for one of all and for one each."""
    model, tokenizer = models.load(small_lm)
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    expected = generate(model, tokenizer, [slot.text(slots.initial_suffix) for slot in slots.slots], DECODING)
    vectors = model.get_input_embeddings()(torch.tensor(slots.initial_ids)).detach()
    assert respond_after(model, tokenizer, slots.slots, [vectors], DECODING) == expected
    assert respond_after(model, tokenizer, slots.slots, [vectors] * 3, DECODING) == expected
    # Each prompt gets its own vectors, not its neighbour's.
    swapped = [vectors, vectors.flip(0) * 3, vectors * -2]
    (alone,) = respond_after(model, tokenizer, slots.slots[1:2], [swapped[1]], DECODING)
    assert respond_after(model, tokenizer, slots.slots, swapped, DECODING)[1] == alone


def test_virtual_tokens_leave_the_model_as_it_was(small_opt: Path) -> None:
    model, tokenizer = models.load(small_opt)
    ids = torch.tensor([tokenizer("What did the baker say?")["input_ids"]])
    before = model(ids).logits
    changed = ids.clone()
    with virtual_tokens(model, torch.ones(2, 32)) as first:
        changed[0, 2] = first + 1
        inputs = model.get_input_embeddings()(changed)
        assert torch.equal(inputs[0, 2], torch.ones(32))
        assert torch.equal(model(ids).logits, before)
    with pytest.raises(IndexError):
        model(changed)
    assert torch.equal(model(ids).logits, before)


def test_a_steered_model_is_refused(make_lm: Any) -> None:
    model, tokenizer = models.load(make_lm("opt", seed=3))
    model.generation_config.repetition_penalty = 1.2
    slots = find_slots(ITEMS, tokenizer, TEMPLATE, SMALL, 256)
    with pytest.raises(UserError, match="repetition penalty"):
        respond_after(model, tokenizer, slots.slots, [torch.ones(6, 32)], DECODING)


@pytest.mark.parametrize("universal", [False, True])
def test_the_stage_answers_as_a_plain_generation_does(small_opt: Path, tmp_path: Path, universal: bool) -> None:
    items = [Item("0", "word " * 90), *ITEMS]
    config = SMALL.model_copy(update={"universal": universal, "steps": 3})
    params = {
        "config": config.model_dump(mode="json"),
        "template": TEMPLATE.value,
        "dtype": "float32",
        "decoding": DECODING.model_dump(mode="json"),
    }
    ctx = stage_context(tmp_path, params, small_opt, prompts=items, train=ITEMS[:2])
    run_soft_prompt_stage(ctx)
    plain = stage_context(tmp_path, params, small_opt, prompts=items)
    stages.run_generate_stage(plain)
    ours = prompts_items.read_rows(ctx.out / stages.RESPONSES)
    theirs = prompts_items.read_rows(plain.out / stages.RESPONSES)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one) == list(other)
        assert (one["id"], one["prompt"], one["plain"]) == (other["id"], other["prompt"], other["plain"])
    assert (ours[0]["response"], ours[0]["reason"]) == (None, "prompt too long")
    assert all(isinstance(row["response"], str) and row["reason"] is None for row in ours[1:])
    assert "[soft prompt of 6 vectors]" in ours[1]["input"] or "[soft prompt of 5 vectors]" in ours[1]["input"]
    told = json.loads((ctx.out / SEARCH).read_text())
    assert told["attack"] == "soft_prompt"
    assert [s["items"] for s in told["searches"]] == ([["1", "2"]] if universal else [["1"], ["2"], ["3"]])
    assert all("vectors" not in s and s["best_loss"] < s["first_loss"] for s in told["searches"])
