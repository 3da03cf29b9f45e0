"""log(1 - p): the unlikelihood of harmful tokens, which bounds the gradient of gradient ascent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, plus_cross_entropy, predicted
from wpn_bench.unlearn.methods.targets import mean_divergence, next_tokens, without
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class Log1mpConfig(MethodConfig):
    """Options of log(1 - p)."""

    gamma: float = Field(1.0, ge=0, description="weight of the forget term")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class Log1mp(Method):
    """L = -gamma * mean_t log(1 - p(y-_t | x, y-_<t)) + alpha * CE(retain).

    The mean is over the response tokens of the batch. The forget term is at least 0. Its derivative by a token's logit is
    p, so a token that is already unlikely has no effect. The paper applies the term to tokens that repeat earlier ones, with
    weight 1; its code replaces 1 - p by 1e-5 where it is smaller. Here log(1 - p) is computed without rounding of 1 - p.
    """

    name = "log1mp"
    title = "log(1 - p)"
    paper = "Welleck et al. 2019, Neural Text Generation with Unlikelihood Training, arXiv:1908.04319"
    Config = Log1mpConfig
    search: ClassVar = {**Method.search, "gamma": Log(0.1, 10.0), "alpha": Log(0.3, 3.0)}
    config: Log1mpConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        theta = self.read(model, batch)
        response = predicted(batch.harmful, batch.harmful.response_mask)
        others = without(next_tokens(batch.harmful, response))
        forget = mean_divergence(theta, batch.harmful, response, others)  # -log(1 - p)
        loss = Loss(self.config.gamma * forget, {"forget": float(forget.detach())})
        return plus_cross_entropy(loss, self.config.alpha, theta, batch.retain)
