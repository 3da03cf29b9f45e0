"""Quick trainings of tiny models, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wpn_bench import models
from wpn_bench.prompts import Item
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.base import Method
from wpn_bench.unlearn.train import Trained, train

TEMPLATE = "Q: {prompt} A:"
QUICK = {"steps": 12, "batch_size": 4, "retain_batch_size": 3, "lr": 3e-3, "warmup_steps": 0, "max_length": 64}
Weights = dict[str, torch.Tensor]


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
