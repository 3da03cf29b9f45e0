"""For the tests of gradient attacks: slots made by hand, and the loss of a target the plain way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wpn_bench.attacks.suffix_slots import SuffixSlot
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import FormatTemplate, Item
from wpn_bench.prompts import items as prompts_items

TEMPLATE = FormatTemplate("Q: {prompt}\n A:")
ITEMS = (
    Item("1", "What did the baker say?", harmful=("You are a silly goose.", "other")),
    Item("2", "The angry miller said to the", "continuation", ("old man in the morning",)),
    Item("3", "Who sells apples in the market of the small town?"),
)


def made_slots(words: int, seed: int = 0) -> list[SuffixSlot]:
    """Five slots of 2 to 9 tokens before, 0 to 3 after, and 1 to 6 to reach."""
    rng = torch.Generator().manual_seed(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        n = int(torch.randint(low, high, (1,), generator=rng))
        return tuple(torch.randint(5, words, (n,), generator=rng).tolist())

    return [SuffixSlot(Item(str(k), "p"), "", "", some(2, 10), some(0, 4), some(1, 7)) for k in range(5)]


def plain_loss(model: Any, slot: SuffixSlot, vectors: Tensor) -> tuple[Tensor, bool]:
    """Mean loss of the target after `vectors` (k, d), and whether it is greedily written: one text, no cache, all
    logits."""
    embed = model.get_input_embeddings()

    def embedded(ids: Sequence[int]) -> Tensor:
        return embed(torch.tensor(ids, dtype=torch.long))

    inputs = torch.cat([embedded(slot.before), vectors, embedded(slot.after), embedded(slot.target)])
    target = torch.tensor(slot.target)
    logits = model(inputs_embeds=inputs.unsqueeze(0), use_cache=False).logits[0, -len(target) - 1 : -1].float()
    loss = -logits.log_softmax(-1)[torch.arange(len(target)), target].mean()
    return loss, bool((logits.argmax(-1) == target).all())


def stage_context(folder: Path, params: dict[str, Any], model: Path, **sets: Sequence[Item]) -> StageContext:
    """The context of a stage that needs `model` and prompt sets."""
    needs = {"model": model}
    for role, items in sets.items():
        needs[role] = folder / role
        needs[role].mkdir(exist_ok=True)
        prompts_items.write_rows(needs[role] / prompts_items.ITEMS, [prompts_items.item_row(item) for item in items])
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    return StageContext(params, needs, out, {"device": "cpu"}, lambda total, unit: lambda n: None)


def short_of_memory(model: Any, rows: int) -> Callable[..., Any]:
    """The model's forward pass, with memory for at most so many rows."""
    forward = model.forward

    @wraps(forward)
    def limited(*args: Any, **given: Any) -> Any:
        if len(given.get("inputs_embeds", ())) > rows:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **given)

    return limited
