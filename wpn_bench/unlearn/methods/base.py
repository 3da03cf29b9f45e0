"""What a method is: a loss over batches of forget triples and retain text, and how it likes to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from wpn_bench.unlearn.search import Choice, Log, Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows


class MethodConfig(BaseModel):
    """What every method's training has in common. A method adds its own fields and changes defaults.

    `lr` None means 0.05 / hidden size: 6.5e-5 at OPT-125M's width (768), 2e-5 at OPT-2.7B's (2560). Adam's step wants
    to shrink with the width (Yang et al. 2022, "Tensor Programs V").
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    steps: int = Field(100, ge=1, description="optimiser steps")
    batch_size: int = Field(8, ge=1, description="forget items a step")
    retain_batch_size: int = Field(8, ge=1, description="retain texts a step")
    max_length: int = Field(160, ge=8, description="tokens of a forget row, prompt and response")
    retain_max_length: int = Field(128, ge=8, description="tokens of a retain row")
    lr: float | None = Field(None, gt=0, description="peak learning rate; None: 0.05 / hidden size")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    stop_at_harmless_rate: float | None = Field(
        None, ge=0, le=1, description="stop once the validation prompts' harmless rate reaches this"
    )
    check_every: int = Field(1, ge=1, description="steps between two looks at the validation prompts")

    def rate(self, width: int) -> float:
        """The peak learning rate for a model of hidden size `width`."""
        return self.lr or 0.05 / width


@dataclass
class Loss:
    """A scalar to minimise, and its parts for the training curve."""

    total: Tensor
    parts: dict[str, float] = field(default_factory=dict)


class Method(ABC):
    """Subclass in a file of its own; the docstring is the formula, `loss` follows it line by line.

    `search` is what `--tune` varies. A method adds its own options: `search: ClassVar = {**Method.search, "kl": Log(0.3, 3)}`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    search: ClassVar[Mapping[str, Range]] = {
        "lr": Log(1 / 3, 3, relative=True),
        "steps": Choice((0.5, 1, 2), relative=True),
    }

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def uses(self) -> frozenset[str]:
        """Which parts of a batch the loss reads: of `harmless`, `harmful`, `retain`."""

    @property
    def negatives(self) -> int:
        """Harmful rows an item."""
        return 1

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the frozen base model."""
        return False

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        """The loss of one batch; `reference` is the frozen base model if `needs_reference`."""


def token_logprobs(model: PreTrainedModel, rows: Rows) -> Tensor:
    """log p(token t | tokens before t), shape (R, T-1): column t is the token at t + 1."""
    import torch.nn.functional as F

    logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
    return -F.cross_entropy(logits.transpose(1, 2).float(), rows.input_ids[:, 1:], reduction="none")


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of all `values` where `mask` is 1 (both of one shape): the usual token-level cross-entropy."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def kl_to_reference(model: PreTrainedModel, reference: PreTrainedModel, rows: Rows) -> Tensor:
    """KL(p_ref || p_theta) in nats, the mean over all predicted tokens of `rows`; a scalar."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        before = reference(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1]
        p = before.float().log_softmax(-1)
    q = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits[:, :-1].float().log_softmax(-1)
    kl = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return mean_over(kl, rows.attention_mask[:, 1:])
