"""Every tensor of a training step is on the device of the model. The device is pretended, so this runs without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_device import DEVICE, PretendedDevice, WrongDevice, pretended
from torch.utils._pytree import tree_map

from wpn_bench import models
from wpn_bench.prompts import Item
from wpn_bench.unlearn.batches import Batches
from wpn_bench.unlearn.loop import Objective
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import Method
from wpn_bench.unlearn.passes import prepare

from .training import TEMPLATE, method_of

VARIETIES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    ("wpn", {"space": "hidden", "pooling": "position"}),
    ("sft", {"kl": 1.0}),
    ("grad_diff", {"retain": "kl"}),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    with pretended(monkeypatch) as there:
        yield there


def step(folder: Path, method: Method, items: list[Item], texts: list[str], where: Any, moved: Any) -> float:
    """The loss of the first step, with its backward pass and AdamW; `moved` moves the batch, as the trainer does."""
    model = models.load_fresh(folder).to(where)
    reference = models.load_fresh(folder).to(where).eval() if method.needs_reference else None
    config = method.config
    batches = Batches(
        models.load_tokenizer(folder),
        items,
        texts,
        template=TEMPLATE,
        uses=method.uses,
        steps=1,
        batch_size=2,
        retain_batch_size=2,
        negatives=method.negatives,
        random_answers=method.random_answers,
        max_length=config.max_length,
        retain_max_length=64,
        seed=0,
    )
    prepare(model, reference)
    method.follow([])
    loss, _ = Objective(model, method, reference, False)(moved(batches[0]))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert all(p.grad is None or p.grad.device == p.device for p in model.parameters())
    return float(loss.detach())


@pytest.mark.parametrize(
    ("name", "options"), VARIETIES, ids=[f"{n}{''.join(map(str, o.values()))}" for n, o in VARIETIES]
)
def test_a_step_of_every_method(
    device: PretendedDevice, name: str, options: dict[str, Any], small_opt: Path, items: list[Item], texts: list[str]
) -> None:
    def there(batch: Any) -> Any:
        return tree_map(lambda x: x.to(DEVICE), batch)

    found = step(small_opt, method_of(name, **options), items, texts, DEVICE, there)
    assert found == pytest.approx(
        step(small_opt, method_of(name, **options), items, texts, "cpu", lambda batch: batch), rel=1e-4, abs=1e-5
    )


def test_a_batch_that_was_not_moved_is_found(
    device: PretendedDevice, small_opt: Path, items: list[Item], texts: list[str]
) -> None:
    with pytest.raises(WrongDevice, match="on the CPU"):
        step(small_opt, method_of("rmu"), items, texts, DEVICE, lambda batch: batch)
