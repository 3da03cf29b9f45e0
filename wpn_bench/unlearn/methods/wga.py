"""WGA (weighted gradient ascent): gradient ascent in which a token counts less the less likely it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import (
    Loss,
    Method,
    MethodConfig,
    mean_over,
    plus_cross_entropy,
    predicted,
    token_logprobs,
)
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class WeightedAscentConfig(MethodConfig):
    """Options of gradient ascent with weights."""

    gamma: float = Field(1.0, ge=0, description="weight of the forget term")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class WeightedAscent(Method):
    """L = gamma * mean_t w_t log p(y-_t | x, y-_<t) + alpha * CE(retain), with a constant weight w_t of each token."""

    config: WeightedAscentConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    @abstractmethod
    def weight(self, p: Tensor) -> Tensor:
        """Return the weight w_t of each token, from its probability."""

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        theta = self.read(model, batch)
        response = predicted(batch.harmful, batch.harmful.response_mask)
        logp = token_logprobs(theta, batch.harmful, response)
        forget = mean_over(self.weight(logp.detach().exp()) * logp, response)
        parts = {
            "forget": float(forget.detach()),
            "harmful_log_likelihood": float(mean_over(logp.detach(), response)),
        }
        return plus_cross_entropy(Loss(self.config.gamma * forget, parts), self.config.alpha, theta, batch.retain)


class WGAConfig(WeightedAscentConfig):
    """Options of WGA."""

    beta: float = Field(
        1.0, ge=0, description="how fast the weight of a token falls with its likelihood; 0 is GradDiff"
    )


class WGA(WeightedAscent):
    """L = gamma * mean_t w_t log p(y-_t | x, y-_<t) + alpha * CE(retain), with the constant weight w_t = p(y-_t | x, y-_<t)^beta.

    The mean is over the response tokens of the batch, and w_t has no gradient, as in open-unlearning. The paper sums over
    the tokens of a response. The gradient of the forget term is that of gamma * mean_t p^beta / beta, which is at least 0.
    The defaults are those of open-unlearning.
    """

    name = "wga"
    title = "WGA"
    paper = (
        "Wang et al. 2025, Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond, arXiv:2502.19301"
    )
    Config = WGAConfig
    search: ClassVar = {**Method.search, "beta": Log(0.1, 5.0), "gamma": Log(0.3, 3.0), "alpha": Log(0.3, 3.0)}
    config: WGAConfig

    def weight(self, p: Tensor) -> Tensor:
        return p**self.config.beta
