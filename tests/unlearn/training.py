"""Quick trainings of tiny models, for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wpn_bench import models
from wpn_bench.harmless.judges import get_judge
from wpn_bench.prompts import FormatTemplate, Item
from wpn_bench.prompts.items import ITEMS, item_row, write_rows
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import NOT_IN_DIGEST, Method
from wpn_bench.unlearn.train import Trained, train

TEMPLATE = FormatTemplate("Q: {prompt} A:")
QUICK = {"steps": 12, "batch_size": 4, "retain_batch_size": 3, "lr": 3e-3, "warmup_steps": 0, "max_length": 64}
# Losses that need not fall in the first steps of random weights. UNDIAL's is at its minimum where the model predicts nothing.
# PDU's dual variable changes the loss itself, and so does the schedule of circuit breakers.
NOT_FALLING = {"undial", "pdu", "circuit_breakers"}
Weights = dict[str, torch.Tensor]


def stop_of() -> dict[str, Any]:
    """By what a training with a goal is looked at: the parameter `stop` of its job."""
    return {
        "judge": "detoxify:lab",
        "judge_digest": get_judge("detoxify:lab").digest(),
        "threshold": 0.5,
        "decoding": {"max_new_tokens": 4, "batch_size": 8},
    }


def put_needs(
    folder: Path, items: Sequence[Item], texts: Sequence[str], validation: Sequence[Item] = ()
) -> dict[str, Path]:
    """What a training reads besides its model, by role; no validation prompts where none are given."""
    needs = {role: folder / role for role in ("forget", "retain", *(["validation"] if validation else []))}
    for one in needs.values():
        one.mkdir()
    write_rows(needs["forget"] / ITEMS, [item_row(i) for i in items])
    write_rows(needs["retain"] / "texts.jsonl", [{"text": t} for t in texts])
    if validation:
        write_rows(needs["validation"] / ITEMS, [item_row(i) for i in validation])
    return needs


def job_in(folder: Path, model: Path, method: Method, needs: dict[str, Path]) -> dict[str, Any]:
    """A training with a store in `folder`, as JSON that another process can read: `store`, and `params`, `needs` and
    `local` of its job."""
    return {
        "store": str(folder / "store"),
        "params": {
            "method": method.name,
            "config": method.config.model_dump(mode="json", exclude=set(NOT_IN_DIGEST)),
            "seed": 1,
            "template": TEMPLATE.value,
            "dtype": "float32",
        },
        "needs": {role: str(path) for role, path in {"model": model, **needs}.items()},
        "local": {"device": "cpu", "config": method.config.model_dump(include=set(NOT_IN_DIGEST))},
    }


class Done:
    """A trained model, its reference, and what training said."""

    def __init__(self, folder: Path, method: Method, items: list[Item], texts: list[str], **options: Any) -> None:
        self.model = models.load_fresh(folder)
        held_apart = method.needs_reference and not method.config.lora
        self.reference = options.pop("reference", models.load(folder)[0] if held_apart else None)
        self.said: Trained = train(
            self.model,
            models.load_tokenizer(folder),
            method,
            items,
            texts,
            template=TEMPLATE,
            reference=self.reference,
            **{"seed": 0, **options},
        )


def method_of(name: str, **options: Any) -> Method:
    """The method with few and quick steps."""
    kind = METHODS.get(name)
    return kind(kind.Config(**{**QUICK, **options}))


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
