"""AltPO (alternate preference optimisation): prefers alternative answers to the ones that are forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_of, plus_cross_entropy, response_logprobs
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class AltPOConfig(MethodConfig):
    """Options of AltPO."""

    beta: float = Field(0.1, gt=0, description="strength of the regularisation towards the reference")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class AltPO(Method):
    """L = -(2 / beta) log sigmoid(beta (r(y+) - r(y-))) + alpha * CE(retain), r(y) = log p_theta(y | x) - log p_ref(y | x).

    log p is summed over the response tokens. This is the loss and these are the defaults of the released code
    (`forget_loss=subdpo`). The preference term is 2 / beta times that of `dpo`, so it counts twenty times more
    against the retain term. Where p_theta = p_ref, its gradient is that of -log p(y+) + log p(y-).

    The authors let the base model write several plausible, wrong answers for y+, because their data have only the answers to
    forget. The forget set here has harmless responses, and these are y+. One of them is drawn for each step.
    """

    name = "altpo"
    title = "AltPO"
    paper = "Mekala et al. 2024, Alternate Preference Optimization for Unlearning Factual Knowledge, arXiv:2409.13474"
    Config = AltPOConfig
    search: ClassVar = {**Method.search, "beta": Log(0.03, 1.0), "alpha": Log(0.3, 3.0)}
    config: AltPOConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "harmful", *(["retain"] if self.config.alpha else [])})

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch
        import torch.nn.functional as F

        from wpn_bench.unlearn.passes import Pass

        assert batch.harmless is not None
        assert batch.harmful is not None
        assert reference is not None
        beta = self.config.beta
        theta, ref = self.read(model, batch), Pass(reference, [batch.harmless, batch.harmful])
        with torch.no_grad():
            alternate_before = response_logprobs(ref, batch.harmless).total
            harmful_before = response_logprobs(ref, batch.harmful).total
        alternate = response_logprobs(theta, batch.harmless).total - alternate_before
        harmful = response_logprobs(theta, batch.harmful).total - harmful_before
        preference = -(2 / beta) * mean_of(F.logsigmoid(beta * (alternate - harmful)))
        parts = {
            "preference": float(preference.detach()),
            "harmless_log_ratio": float(mean_of(alternate.detach())),
            "harmful_log_ratio": float(mean_of(harmful.detach())),
        }
        return plus_cross_entropy(Loss(preference, parts), self.config.alpha, theta, batch.retain)
