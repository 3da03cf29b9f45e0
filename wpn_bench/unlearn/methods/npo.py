"""NPO (negative preference optimisation): gradient ascent whose gradient vanishes when a response becomes unlikely."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_of, plus_cross_entropy, response_logprobs
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class NPOConfig(MethodConfig):
    """Options of NPO."""

    beta: float = Field(0.1, gt=0, description="how fast the gradient vanishes; the limit 0 is gradient ascent")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class NPO(Method):
    """L = -(2 / beta) log sigmoid(-beta (log p_theta(y- | x) - log p_ref(y- | x))) + alpha * CE(retain).

    log p is summed over the response tokens, as in the paper and its code; some reimplementations use the mean. The forget
    term is at least 0. Where p_theta = p_ref its gradient is that of gradient ascent.
    """

    name = "npo"
    title = "NPO"
    paper = "Zhang, Lin, Bai, Mei 2024, Negative Preference Optimization, arXiv:2404.05868"
    Config = NPOConfig
    search: ClassVar = {**Method.search, "beta": Log(0.03, 1.0), "alpha": Log(0.3, 3.0)}
    config: NPOConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch
        import torch.nn.functional as F

        assert batch.harmful is not None
        assert reference is not None
        beta = self.config.beta
        with torch.no_grad():
            before = response_logprobs(reference, batch.harmful).total
        theta = self.read(model, batch)
        ratio = response_logprobs(theta, batch.harmful).total - before
        forget = -(2 / beta) * mean_of(F.logsigmoid(-beta * ratio))
        parts = {"forget": float(forget.detach()), "harmful_log_ratio": float(mean_of(ratio.detach()))}
        return plus_cross_entropy(Loss(forget, parts), self.config.alpha, theta, batch.retain)
