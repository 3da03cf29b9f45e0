"""CE-U: the model learns its own predictions without the harmful token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, plus_cross_entropy, predicted
from wpn_bench.unlearn.methods.targets import mean_divergence, next_tokens, without
from wpn_bench.unlearn.search import Choice, Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class CEUConfig(MethodConfig):
    """Options of CE-U."""

    skip: int = Field(1, ge=0, description="number of tokens at the beginning of a response that do not count")
    gamma: float = Field(1.0, gt=0, description="weight of the forget term")
    alpha: float = Field(0.0, ge=0, description="weight of CE on retain text")


class CEU(Method):
    """L = -gamma * mean_t sum_v q_t(v) log p(v | x, y-_<t) + alpha * CE(retain), q_t = p without y-_t, held constant.

    q_t(v) = p(v) / (1 - p(y-_t)) for v other than y-_t, and q_t(y-_t) = 0. The mean is over the response tokens of the batch
    without the first `skip` of each response, as in open-unlearning, which cites a footnote of the paper. The published loss
    has no retain term, so alpha is 0.

    The forget term is the entropy of q plus -log(1 - p(y-_t)), and its gradient is exactly that of -log(1 - p(y-_t)), the
    forget term of `log1mp`. The loss itself may rise while the harmful tokens become less likely, because the entropy of q
    changes.
    """

    name = "ceu"
    title = "CE-U"
    paper = "Yang 2025, CE-U: Cross Entropy Unlearning, arXiv:2503.01224"
    Config = CEUConfig
    search: ClassVar = {**Method.search, "skip": Choice((0, 1, 2)), "gamma": Log(0.3, 3.0)}
    config: CEUConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        theta = self.read(model, batch)
        counted = batch.harmful.response_mask * (batch.harmful.response_mask.cumsum(1) > self.config.skip)
        response = predicted(batch.harmful, counted)
        q = without(next_tokens(batch.harmful, response))
        forget = mean_divergence(theta, batch.harmful, response, q, cross_entropy=True)
        loss = Loss(self.config.gamma * forget, {"forget": float(forget.detach())})
        return plus_cross_entropy(loss, self.config.alpha, theta, batch.retain)
