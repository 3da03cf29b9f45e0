"""GradDiff: gradient ascent on harmful responses, with a loss on retain text that preserves other behaviour."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy, kl_to_reference
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class GradDiffConfig(MethodConfig):
    """Options of GradDiff."""

    gamma: float = Field(1.0, ge=0, description="weight of the ascent on harmful responses")
    alpha: float = Field(1.0, ge=0, description="weight of the retain term")
    retain: Literal["ce", "kl"] = Field("ce", description="retain term: CE, or KL(p_ref || p_theta)")


class GradDiff(Method):
    """L = -gamma * CE(y- | x) + alpha * CE(retain), or + alpha * KL(p_ref || p_theta)(retain).

    gamma = alpha = 1 as in open-unlearning. The first term has no lower bound.
    """

    name = "grad_diff"
    title = "GradDiff"
    paper = "Liu, Liu, Stone 2022, Continual Learning and Private Unlearning, arXiv:2203.12817; TOFU, arXiv:2401.06121"
    Config = GradDiffConfig
    search: ClassVar = {**Method.search, "alpha": Log(0.3, 10.0)}
    config: GradDiffConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", "retain"})

    @property
    def needs_reference(self) -> bool:
        return self.config.retain == "kl"

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        assert batch.retain is not None
        theta = self.read(model, batch)
        harmful = cross_entropy(theta, batch.harmful, batch.harmful.response_mask)
        if self.config.retain == "kl":
            assert reference is not None
            retain = kl_to_reference(theta, reference, batch.retain)
        else:
            retain = cross_entropy(theta, batch.retain)
        total = -self.config.gamma * harmful + self.config.alpha * retain
        return Loss(total, {"harmful_loss": float(harmful.detach()), "retain": float(retain.detach())})
