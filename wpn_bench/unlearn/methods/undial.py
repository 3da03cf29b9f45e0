"""UNDIAL: the model learns the reference's own predictions, with the logits of harmful tokens made smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, plus_cross_entropy, predicted
from wpn_bench.unlearn.methods.targets import lowered, mean_divergence, next_tokens
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class UNDIALConfig(MethodConfig):
    """Options of UNDIAL."""

    beta: float = Field(10.0, ge=0, description="by how much the logit of a harmful token is smaller")
    gamma: float = Field(1.0, ge=0, description="weight of the forget term")
    alpha: float = Field(0.0, ge=0, description="weight of CE on retain text")


class UNDIAL(Method):
    """L = -gamma * mean_t sum_v q_t(v) log p_theta(v | x, y-_<t) + alpha * CE(retain), q_t = softmax(z_ref - beta 1[y-_t]).

    z_ref are the logits of the reference after x, y-_<t, and 1[y-_t] is 1 for the harmful token and 0 for all others. The
    mean is over the response tokens of the batch. The defaults are those of open-unlearning, which has no retain term.

    The paper lowers the logits of the memorised tokens, too. Open-unlearning averages over all positions, prompts and
    padding included; on these, it lowers the logit of another token by mistake (the label -100 counts from the end of the
    vocabulary). The two are equal for rows without prompts and padding.
    """

    name = "undial"
    title = "UNDIAL"
    paper = "Dong et al. 2024, UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning, arXiv:2402.10052"
    Config = UNDIALConfig
    search: ClassVar = {**Method.search, "beta": Log(1.0, 30.0), "gamma": Log(0.3, 3.0)}
    config: UNDIALConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch

        from wpn_bench.unlearn.passes import Pass

        assert batch.harmful is not None
        assert reference is not None
        theta, ref = self.read(model, batch), Pass(reference, [batch.harmful])
        response = predicted(batch.harmful, batch.harmful.response_mask)
        with torch.no_grad():
            before = ref.logits(batch.harmful, response)
        q = lowered(before, next_tokens(batch.harmful, response), self.config.beta)
        forget = mean_divergence(theta, batch.harmful, response, q, cross_entropy=True)
        loss = Loss(self.config.gamma * forget, {"forget": float(forget.detach())})
        return plus_cross_entropy(loss, self.config.alpha, theta, batch.retain)
