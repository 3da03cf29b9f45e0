"""Maximum entropy: predictions of harmful text become uniform."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, plus_cross_entropy, predicted
from wpn_bench.unlearn.methods.targets import mean_divergence, uniform
from wpn_bench.unlearn.processes import divisor
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class MaxEntropyConfig(MethodConfig):
    """Options of maximum entropy."""

    variant: Literal["paper", "released"] = Field(
        "paper", description="KL(p || u), or KL(u || p) as in the released code"
    )
    tokens: Literal["all", "response"] = Field("all", description="whether the tokens of the prompt count, too")
    gamma: float = Field(0.1, ge=0, description="weight of the forget term")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class MaxEntropy(Method):
    """L = gamma * mean_t KL(p_theta(. | x, y-_<t) || u) + alpha * CE(retain), u the uniform distribution.

    KL(p || u) is log V minus the entropy of p, with V tokens in the vocabulary. The mean is over all predicted tokens of the
    harmful rows, the prompt included (`mask=false` in the released configuration). The paper calls the method with this retain
    term ME+GD. gamma and alpha are the released ones.

    `variant="released"` follows the released code, which computes KL(u || p) = -log V - mean_v log p(v). It also adds
    1e-12 to p, and counts the padding behind a row; neither is done here.
    """

    name = "max_entropy"
    title = "Maximum entropy"
    paper = "Yuan et al. 2024, A Closer Look at Machine Unlearning for Large Language Models, arXiv:2410.08109"
    Config = MaxEntropyConfig
    search: ClassVar = {**Method.search, "gamma": Log(0.03, 1.0), "alpha": Log(0.3, 3.0)}
    config: MaxEntropyConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", *(["retain"] if self.config.alpha else [])})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        theta = self.read(model, batch)
        rows = batch.harmful
        mask = predicted(rows, rows.response_mask if self.config.tokens == "response" else None)
        if self.config.variant == "released":
            forget = mean_divergence(theta, rows, mask, uniform())
        else:
            most = math.log(model.get_output_embeddings().weight.shape[0])
            forget = (most - theta.entropies(rows, mask)).sum() / divisor(mask.sum())
        loss = Loss(self.config.gamma * forget, {"forget": float(forget.detach())})
        return plus_cross_entropy(loss, self.config.alpha, theta, batch.retain)
