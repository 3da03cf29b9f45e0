"""PDU: flattens the logits of harmful text, under a constraint on the retain loss that a dual variable enforces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy, predicted
from wpn_bench.unlearn.processes import divisor
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch

SLACK = 1.1  # the bound on the retain loss, as a multiple of that of the first step


class PDUConfig(MethodConfig):
    """Options of PDU."""

    gamma: float = Field(1.0, ge=0, description="weight of the forget term")
    alpha: float = Field(100.0, ge=0, description="the dual variable at the beginning")
    bound: float | None = Field(
        None, ge=0, description="bound on CE(retain); None means 1.1 times that of the first step's retain texts"
    )
    dual_step: float = Field(5.0, ge=0, description="step size of the dual variable")
    dual_warmup: float = Field(0.5, ge=0, le=1, description="share of the steps before the dual variable changes")


class PDU(Method):
    """L = gamma * mean_t (max_v z_t(v) - mean_v z_t(v))^2 + lambda * (CE(retain) - bound).

    z_t are the logits that predict token t of the harmful response. The dual variable lambda is constant within a step. It
    begins at alpha. After each step of the last half of the training (`dual_warmup`), it becomes
    max(0, lambda + dual_step * (CE(retain) - bound)), with the retain texts of that step.

    alpha, the dual step and the warm-up of half of the epochs are those of the paper's experiments on TOFU in open-unlearning.
    There, the bound has no default; the authors advise a value somewhat above the retain loss of the base model.
    Open-unlearning takes the logits at the response tokens, which predict one token later, and updates lambda
    after each micro-batch. Here it is updated after each optimiser step.
    """

    name = "pdu"
    title = "PDU"
    paper = "Entesari et al. 2025, Constrained Entropic Unlearning: A Primal-Dual Framework for LLMs, arXiv:2506.05314"
    Config = PDUConfig
    search: ClassVar = {**Method.search, "alpha": Log(10.0, 300.0), "dual_step": Log(0.5, 20.0)}
    config: PDUConfig

    def __init__(self, config: PDUConfig) -> None:
        super().__init__(config)
        self.follow([])

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", "retain"})

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        """Set the bound and the dual variable from the retain losses of all steps so far."""
        self.bound = self.config.bound
        if self.bound is None and history:
            self.bound = SLACK * history[0]["retain_loss"]
        self.dual = self.config.alpha
        if self.bound is not None:
            for parts in history[round(self.config.dual_warmup * self.config.steps) :]:
                self.dual = max(0.0, self.dual + self.config.dual_step * (parts["retain_loss"] - self.bound))

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        assert batch.retain is not None
        theta = self.read(model, batch)
        response = predicted(batch.harmful, batch.harmful.response_mask)
        margins = theta.logit_margins(batch.harmful, response)
        forget = (margins**2).sum() / divisor(response.sum())
        retain = cross_entropy(theta, batch.retain)
        bound = SLACK * retain.detach() if self.bound is None else self.bound
        total = self.config.gamma * forget + self.dual * (retain - bound)
        parts = {"forget": float(forget.detach()), "retain_loss": float(retain.detach()), "dual": self.dual}
        return Loss(total, parts)
