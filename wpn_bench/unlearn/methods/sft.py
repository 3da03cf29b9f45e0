"""Supervised fine-tuning on the harmless responses: the simple baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy, plus_kl
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class SFTConfig(MethodConfig):
    """Options of fine-tuning on harmless responses."""

    kl: float = Field(0.0, ge=0, description="weight of KL(p_ref || p_theta) on retain text; 0 is plain fine-tuning")


class SFT(Method):
    """L = CE(y+ | x) + kl * KL(p_ref || p_theta)(retain)."""

    name = "sft"
    title = "Fine-tuning on harmless responses"
    paper = "the simple baseline; no paper"
    Config = SFTConfig
    config: SFTConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "retain"} if self.config.kl else {"harmless"})

    @property
    def needs_reference(self) -> bool:
        return self.config.kl > 0

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmless is not None
        theta = self.read(model, batch)
        ce = cross_entropy(theta, batch.harmless, batch.harmless.response_mask)
        loss = Loss(ce, {"harmless_loss": float(ce.detach())})
        return plus_kl(loss, self.config.kl, theta, reference, batch.retain)


class SFTKLConfig(SFTConfig):
    """Options of fine-tuning with a KL term, which keeps the model close to the base on retain text."""

    kl: float = Field(1.0, ge=0)


class SFTKL(SFT):
    """L = CE(y+ | x) + KL(p_ref || p_theta)(retain): WPN without its contrastive term."""

    name = "sft_kl"
    title = "Fine-tuning with KL"
    Config = SFTKLConfig
    search: ClassVar = {**Method.search, "kl": Log(0.3, 3.0)}
