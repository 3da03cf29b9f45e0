"""DPO (direct preference optimisation) trains the model to prefer harmless to harmful responses."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_of, plus_cross_entropy, response_logprobs
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class DPOConfig(MethodConfig):
    """Options of DPO."""

    beta: float = Field(0.1, gt=0, description="strength of the regularisation towards the reference")
    alpha: float = Field(1.0, ge=0, description="weight of CE on retain text")


class DPO(Method):
    """L = -log sigmoid(beta ((log p_theta - log p_ref)(y+ | x) - (log p_theta - log p_ref)(y- | x))) + alpha * CE(retain).

    log p is summed over the response tokens. This is the paper's formula; open-unlearning multiplies the first term by
    2 / beta.
    """

    name = "dpo"
    title = "DPO"
    paper = "Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290"
    Config = DPOConfig
    search: ClassVar = {**Method.search, "beta": Log(0.03, 1.0), "alpha": Log(0.3, 3.0)}
    config: DPOConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "harmful", *(["retain"] if self.config.alpha else [])})

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def scale(self) -> float:
        """Return the factor of the preference term."""
        return 1.0

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        import torch
        import torch.nn.functional as F

        from wpn_bench.unlearn.passes import Pass

        assert batch.harmless is not None
        assert batch.harmful is not None
        assert reference is not None
        theta, ref = self.read(model, batch), Pass(reference, [batch.harmless, batch.harmful])
        with torch.no_grad():
            chosen_before = response_logprobs(ref, batch.harmless).total
            rejected_before = response_logprobs(ref, batch.harmful).total
        chosen = response_logprobs(theta, batch.harmless).total - chosen_before
        rejected = response_logprobs(theta, batch.harmful).total - rejected_before
        preference = -self.scale * mean_of(F.logsigmoid(self.config.beta * (chosen - rejected)))
        parts = {
            "preference": float(preference.detach()),
            "harmless_log_ratio": float(mean_of(chosen.detach())),
            "harmful_log_ratio": float(mean_of(rejected.detach())),
        }
        return plus_cross_entropy(Loss(preference, parts), self.config.alpha, theta, batch.retain)
