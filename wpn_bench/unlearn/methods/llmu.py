"""LLMU: gradient ascent on harmful responses, fine-tuning on random answers, and a KL term on normal text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wpn_bench.unlearn.methods.base import (
    Loss,
    Method,
    MethodConfig,
    cross_entropy,
    forward,
    kl_to_reference,
    mean_of,
)
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows


class LLMUConfig(MethodConfig):
    """Options of LLMU."""

    random_answers: int = Field(5, ge=1, description="K random answers per item")
    ascent: float = Field(0.5, ge=0, description="weight of -CE(y- | x)")
    random: float = Field(1.0, ge=0, description="weight of CE(random answers | x)")
    normal: float = Field(1.0, ge=0, description="weight of the term on retain text")
    variant: Literal["paper", "released"] = "paper"


class LLMU(Method):
    """L = ascent * -CE(y- | x) + random * mean_k CE(r_k | x) + normal * KL(p_ref || p_theta)(retain).

    r_1..r_K are random answers: here the beginnings of random retain texts; the authors use answers to other questions.

    `variant="paper"` follows the paper. `variant="released"` follows the released code: the random-answer term also trains
    on the question, and the "KL" is the cross-entropy -sum_v p_ref log p_theta, averaged over all positions, padding
    included. The code's stopping rule (forget loss above 100) compares a negative loss and never applies, so it is left out.

    The released settings are AdamW at 2e-6, batch size 2 and 1,000 steps. Here all methods use the same data and steps
    unless they are tuned.
    """

    name = "llmu"
    title = "LLMU"
    paper = "Yao, Xu, Liu 2023, Large Language Model Unlearning, arXiv:2310.10683"
    Config = LLMUConfig
    search: ClassVar = {**Method.search, "ascent": Log(0.1, 2.0), "normal": Log(0.3, 3.0)}
    config: LLMUConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmful", "random", "retain"})

    @property
    def random_answers(self) -> int:
        return self.config.random_answers

    @property
    def needs_reference(self) -> bool:
        return True

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        from wpn_bench.unlearn.passes import Pass

        assert batch.harmful is not None
        assert batch.random is not None
        assert batch.retain is not None
        assert reference is not None
        released = self.config.variant == "released"
        # The released code counts padding, so its term has a pass of its own, over padded rows.
        theta = Pass(model, [batch.harmful, batch.random]) if released else self.read(model, batch)
        ascent = -cross_entropy(theta, batch.harmful, batch.harmful.response_mask)
        random = cross_entropy(theta, batch.random, None if released else batch.random.response_mask)
        if released:
            normal = cross_entropy_with_padding(model, reference, batch.retain)
        else:
            normal = kl_to_reference(theta, reference, batch.retain)
        total = self.config.ascent * ascent + self.config.random * random + self.config.normal * normal
        parts = {"harmful_log_likelihood": ascent, "random_loss": random, "retain": normal}
        return Loss(total, {name: float(value.detach()) for name, value in parts.items()})


def cross_entropy_with_padding(model: PreTrainedModel, reference: PreTrainedModel, rows: Rows) -> Tensor:
    """Compute -sum_v p_ref(v) log p_theta(v), averaged over all positions, padding and the last token included.

    Args:
        model: The model to train, p_theta.
        reference: The frozen base model, p_ref.
        rows: R rows of T tokens.

    Returns:
        Nats per position, a scalar.
    """
    import torch

    from wpn_bench.engine.readout import at_least_float32

    with torch.no_grad():
        p = at_least_float32(forward(reference, rows).logits).softmax(-1)
    q = at_least_float32(forward(model, rows).logits).log_softmax(-1)
    return -mean_of((p * q).sum(-1).flatten())
