"""What a method is: a loss over batches of forget triples and retain text, and how it likes to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wpn_bench.core.registry import source_digest
from wpn_bench.core.validation import Count
from wpn_bench.engine.head import head_only_at
from wpn_bench.unlearn.processes import divisor
from wpn_bench.unlearn.search import Choice, Log, Range

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows


# An adapter's B begins at zero and W moves by a product: the rate that suits it is an order of magnitude above the one
# that suits W. Measured on the lab: docs/training.md.
LORA_LR = 10.0


class LoRAConfig(BaseModel):
    """Low-rank adapters in place of all weights (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank * B A.

    `alpha` None means 2 * rank, so the scale of the update stays 2 at any rank. `target_modules` names linear modules by
    the end of their names (`q_proj`); "all-linear" is every linear module but the output head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    rank: Count = 16
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class MethodConfig(BaseModel):
    """What every method's training has in common. A method adds its own fields and changes defaults.

    `lr` None means 0.05 / hidden size: 6.5e-5 at OPT-125M's width (768), 2e-5 at OPT-2.7B's (2560). Adam's step wants
    to shrink with the width (Yang et al. 2022, "Tensor Programs V"). With LoRA it is ten times that (docs/training.md).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    steps: Count = Field(100, description="optimiser steps")
    batch_size: Count = Field(8, description="forget items a micro-batch")
    retain_batch_size: Count = Field(8, description="retain texts a micro-batch")
    accumulation: Count = Field(1, description="micro-batches an optimiser step; their losses are averaged")
    max_length: int = Field(160, ge=8, description="tokens of a forget row, prompt and response")
    retain_max_length: int = Field(128, ge=8, description="tokens of a retain row")
    lr: float | None = Field(None, gt=0, description="peak learning rate; None: 0.05 / hidden size, 0.5 with LoRA")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(5, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    grad_clip: float = Field(1.0, gt=0)
    stop_at_harmless_rate: float | None = Field(
        None, ge=0, le=1, description="stop once the validation prompts' harmless rate reaches this"
    )
    check_every: Count = Field(1, description="steps between two looks at the validation prompts")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="forward and backward in this type, weights and losses in float32"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice instead of keeping them")
    lora: LoRAConfig | None = Field(
        None, description="train low-rank adapters instead of all weights; a number is the rank"
    )
    save_every: int = Field(
        50, ge=0, description="steps between checkpoints from which a killed training goes on; 0: none"
    )

    @field_validator("lora", mode="before")
    @classmethod
    def _rank_alone(cls, value: Any) -> Any:
        """`lora: 16` is a rank, `lora: true` the defaults, `lora: false` none."""
        if isinstance(value, bool):
            return LoRAConfig() if value else None
        return {"rank": value} if isinstance(value, int) else value

    def peak_lr(self, width: int) -> float:
        """`lr`, or the default at a hidden size of `width`."""
        return self.lr or (LORA_LR if self.lora else 1.0) * 0.05 / width


# Options that decide how training is carried out and not what comes out of it.
NOT_IN_DIGEST = ("save_every",)


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
    # Raise it when the loss changes: models trained before are then no longer taken from the store.
    version: ClassVar[int] = 1

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def uses(self) -> frozenset[str]:
        """Which parts of a batch the loss reads: of `harmless`, `harmful`, `random`, `retain`."""

    @property
    def negatives(self) -> int:
        """Harmful rows an item."""
        return 1

    @property
    def random_answers(self) -> int:
        """Rows an item with a random answer."""
        return 0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the frozen base model."""
        return False

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        """The loss of one batch; `reference` is the frozen base model if `needs_reference`."""


def code_of(method: type[Method]) -> dict[str, Any]:
    """What of the method's code makes up the digest of a training: its `version`, and the source of a plug-in.

    Our own methods raise `version` when their loss changes. A plug-in's author may forget to, or be at work on it, so a
    method of another package is known by the digest of all Python files of that package too.
    """
    return {"version": method.version, "source": source_digest(method)}


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision to float32, anything else as it is: a softmax over a vocabulary needs the digits."""
    import torch

    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def predicted(rows: Rows, mask: Tensor | None = None) -> Tensor:
    """(R, T-1), 1 where a token of `mask` (R, T; None: every real token) is predicted from a real token before it."""
    kept = rows.attention_mask if mask is None else mask * rows.attention_mask
    return kept[:, 1:] * rows.attention_mask[:, :-1]


def forward(model: PreTrainedModel, rows: Rows, **options: Any) -> Any:
    """The model's output on `rows`, padded on either side."""
    options |= positions(rows)
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **options)


def positions(rows: Rows) -> dict[str, Tensor]:
    """`position_ids` for rows padded on the left, counted from the first real token, which not every model does by
    itself; nothing for rows padded on the right."""
    if bool(rows.attention_mask[:, 0].all()):
        return {}
    return {"position_ids": (rows.attention_mask.cumsum(1) - 1).clamp(min=0)}


def logits_at(model: PreTrainedModel, rows: Rows, mask: Tensor) -> Tensor:
    """Logits (N, V), in row order, that predict the N tokens where `mask` (R, T-1) is 1 (column t: token t + 1)."""
    import torch.nn.functional as F

    with head_only_at(model, F.pad(mask, (0, 1))):
        return at_least_float32(forward(model, rows).logits[0])


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """`values` (N,) back to the places where `mask` (R, T-1) is 1, zero elsewhere."""
    out = values.new_zeros(mask.shape)
    out[mask.bool()] = values
    return out


def token_logprobs(model: PreTrainedModel, rows: Rows, mask: Tensor) -> Tensor:
    """log p(token t | tokens before t), shape (R, T-1), where `mask` (of that shape) is 1; zero elsewhere.

    Column t is the token at t + 1.
    """
    return logprobs_of(logits_at(model, rows, mask), rows, mask)


def logprobs_of(logits: Tensor, rows: Rows, mask: Tensor) -> Tensor:
    """The same from the logits (N, V) of the N tokens where `mask` is 1, where a loss needs more of the forward pass."""
    import torch.nn.functional as F

    targets = rows.input_ids[:, 1:][mask.bool()]
    return spread(-F.cross_entropy(logits, targets, reduction="none"), mask)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of all `values` where `mask` is 1 (both of one shape): the usual token-level cross-entropy.

    Over the tokens of the whole batch, however many processes share it.
    """
    return (values * mask).sum() / divisor(mask.sum())


def mean_of(values: Tensor) -> Tensor:
    """Mean of `values` (R,), one an item or a row: over the whole batch, however many processes share it."""
    return values.mean() * (len(values) / divisor(values.new_tensor(len(values))))


def cross_entropy(model: PreTrainedModel, rows: Rows, mask: Tensor | None = None) -> Tensor:
    """CE over the tokens of `mask` (R, T; None: every real token), the mean over them in nats; a scalar."""
    kept = predicted(rows, mask)
    return -mean_over(token_logprobs(model, rows, kept), kept)


def response_logprobs(model: PreTrainedModel, rows: Rows) -> Responses:
    """log p(y | x) of every row's response, summed over its tokens and as their mean."""
    kept = predicted(rows, rows.response_mask)
    total = token_logprobs(model, rows, kept).sum(1)
    return Responses(total, total / kept.sum(1).clamp(min=1), kept.sum(1))


@dataclass
class Responses:
    """`total` = sum_t log p(y_t | x, y_<t) and `mean` over the `n` tokens of each response; all (R,)."""

    total: Tensor
    mean: Tensor
    n: Tensor

    @property
    def ce(self) -> Tensor:
        """The usual token-level cross-entropy of all responses together; a scalar."""
        return -self.total.sum() / divisor(self.n.sum())


def kl_to_reference(model: PreTrainedModel, reference: PreTrainedModel, rows: Rows) -> Tensor:
    """KL(p_ref || p_theta) in nats, the mean over all predicted tokens of `rows`; a scalar."""
    import torch
    import torch.nn.functional as F

    kept = predicted(rows)
    with torch.no_grad():
        p = logits_at(reference, rows, kept).log_softmax(-1)
    q = logits_at(model, rows, kept).log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True) / divisor(kept.sum())


def plus_kl(
    loss: Loss, weight: float, model: PreTrainedModel, reference: PreTrainedModel | None, retain: Rows | None
) -> Loss:
    """`loss` + weight * KL(p_ref || p_theta)(retain); nothing is computed at weight 0."""
    if not weight:
        return loss
    assert reference is not None
    assert retain is not None
    return _plus(loss, weight, "retain_kl", kl_to_reference(model, reference, retain))


def plus_cross_entropy(loss: Loss, weight: float, model: PreTrainedModel, retain: Rows | None) -> Loss:
    """`loss` + weight * CE(retain); nothing is computed at weight 0."""
    if not weight:
        return loss
    assert retain is not None
    return _plus(loss, weight, "retain_loss", cross_entropy(model, retain))


def _plus(loss: Loss, weight: float, name: str, term: Tensor) -> Loss:
    return Loss(loss.total + weight * term, {**loss.parts, name: float(term.detach())})
