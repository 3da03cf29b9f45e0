"""SimNPO: NPO without a reference model. It uses the mean log-likelihood of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_of, plus_cross_entropy, response_logprobs
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class SimNPOConfig(MethodConfig):
    """Options of SimNPO."""

    beta: float = Field(4.5, gt=0)
    delta: float = Field(0.0, description="margin for the mean loss of a harmful response, in nats per token")
    gamma: float = Field(0.125, ge=0, description="weight of the forget term")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class SimNPO(Method):
    """L = -gamma * (2 / beta) log sigmoid(beta (NLL(y- | x) / |y-| - delta)) + alpha * CE(retain).

    The defaults of beta, delta, gamma and alpha are those of open-unlearning; the paper tunes them for each task.
    """

    name = "simnpo"
    title = "SimNPO"
    paper = "Fan et al. 2024, Simplicity Prevails: Rethinking Negative Preference Optimization, arXiv:2410.07163"
    Config = SimNPOConfig
    search: ClassVar = {**Method.search, "gamma": Log(0.05, 1.0), "alpha": Log(0.3, 3.0)}
    config: SimNPOConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch.nn.functional as F

        assert batch.harmful is not None
        beta = self.config.beta
        theta = self.read(model, batch)
        nll = -response_logprobs(theta, batch.harmful).mean
        forget = -(2 / beta) * mean_of(F.logsigmoid(beta * (nll - self.config.delta)))
        parts = {"forget": float(forget.detach()), "harmful_loss": float(mean_of(nll.detach()))}
        return plus_cross_entropy(Loss(self.config.gamma * forget, parts), self.config.alpha, theta, batch.retain)
