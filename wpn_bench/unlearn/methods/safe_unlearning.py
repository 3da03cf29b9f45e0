"""Safe Unlearning: train on refusals and ordinary text, and unlearn harmful responses with a bounded loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy, mean_of, response_logprobs
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class SafeUnlearningConfig(MethodConfig):
    """Options of Safe Unlearning."""

    benign: float = Field(1.0, ge=0, description="weight of CE on retain text")
    refusal: float = Field(0.5, ge=0, description="weight of CE(y+ | x)")
    unlearn: float = Field(0.3, ge=0, description="weight of the unlearning term")


class SafeUnlearning(Method):
    """L = benign * CE(retain) + refusal * CE(y+ | x) - unlearn * mean log sigmoid(-(lbar_theta - lbar_ref)(y- | x)).

    lbar is the mean log-likelihood of the response tokens. The paper's ordinary data are benign instructions with answers;
    here they are the retain texts that all methods use.
    """

    name = "safe_unlearning"
    title = "Safe Unlearning"
    paper = "Zhang et al. 2024, From Theft to Bomb-Making: The Ripple Effect of Unlearning, arXiv:2407.02855"
    Config = SafeUnlearningConfig
    search: ClassVar = {**Method.search, "refusal": Log(0.2, 2.0), "unlearn": Log(0.1, 1.0)}
    config: SafeUnlearningConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "harmful", "retain"})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch
        import torch.nn.functional as F

        assert batch.harmless is not None
        assert batch.harmful is not None
        assert batch.retain is not None
        assert reference is not None
        theta = self.read(model, batch)
        benign = cross_entropy(theta, batch.retain)
        refusal = cross_entropy(theta, batch.harmless, batch.harmless.response_mask)
        with torch.no_grad():
            before = response_logprobs(reference, batch.harmful).mean
        ratio = response_logprobs(theta, batch.harmful).mean - before
        unlearn = -mean_of(F.logsigmoid(-ratio))
        total = self.config.benign * benign + self.config.refusal * refusal + self.config.unlearn * unlearn
        parts = {"retain_loss": benign, "harmless_loss": refusal, "unlearn": unlearn}
        return Loss(total, {name: float(value.detach()) for name, value in parts.items()})
