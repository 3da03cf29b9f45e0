"""Gradient ascent, which only makes the harmful text less likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch


class GradientAscentConfig(MethodConfig):
    """Options of Jang et al.: a constant learning rate, no warm-up, and 32 items per step."""

    batch_size: int = Field(32, ge=1, description="forget items per step")
    schedule: str = "constant"  # type: ignore[assignment]
    warmup_steps: int = Field(0, ge=0)
    steps: int = Field(60, ge=1, description="optimiser steps")


class GradientAscent(Method):
    """L = -CE over the whole harmful sequence, prompt and response ("UL" in the paper).

    The loss has no lower bound, so the number of steps decides how much of the model's capability is lost.
    """

    name = "ga"
    title = "Gradient ascent"
    paper = "Jang et al. 2022, Knowledge Unlearning for Mitigating Privacy Risks in Language Models, arXiv:2210.01504"
    Config = GradientAscentConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful"})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        loss = -cross_entropy(model, batch.harmful)
        return Loss(loss, {"harmful_log_likelihood": float(loss.detach())})


class GradientAscentAnswer(GradientAscent):
    """L = -CE_f over the tokens of the harmful response only (the variant of open-unlearning, TOFU)."""

    name = "ga_answer"
    title = "Gradient ascent, answer tokens"
    paper = "Maini et al. 2024, TOFU: A Task of Fictitious Unlearning for LLMs, arXiv:2401.06121"

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmful is not None
        loss = -cross_entropy(model, batch.harmful, batch.harmful.response_mask)
        return Loss(loss, {"harmful_log_likelihood": float(loss.detach())})
