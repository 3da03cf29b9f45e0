"""FLAT: raises the f-divergence between harmless and harmful responses, without retain text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wpn_bench.unlearn.methods.base import Loss, Method, MethodConfig, mean_of, predicted, token_logprobs
from wpn_bench.unlearn.search import Choice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows
    from wpn_bench.unlearn.passes import Pass

Divergence = Literal["total_variation", "jensen_shannon", "pearson", "kl"]

# g(P) and f*(g(P)) of each divergence, as functions of P.
TERMS: dict[Divergence, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "total_variation": (lambda p: p.tanh() / 2, lambda p: p.tanh() / 2),
    "jensen_shannon": (
        lambda p: math.log(2) - (-p).exp().log1p(),
        lambda p: p + (-p).exp().log1p() - math.log(2),
    ),
    "pearson": (lambda p: p, lambda p: p**2 / 4 + p),
    "kl": (lambda p: p, lambda p: (p - 1).exp()),
}


class FLATConfig(MethodConfig):
    """Options of FLAT."""

    divergence: Divergence = Field("total_variation", description="the f-divergence")


class FLAT(Method):
    """L = -g(P(y+ | x)) + f*(g(P(y- | x))), averaged over the items, with P(y | x) = mean_t p(y_t | x, y_<t).

    P is the mean probability of the response tokens. g is the optimal variational function of an f-divergence, and f* is
    the conjugate of f:

        total_variation: g(P) = tanh(P) / 2, f*(u) = u
        jensen_shannon: g(P) = log(2 / (1 + exp(-P))), f*(u) = -log(2 - exp(u))
        pearson: g(P) = P, f*(u) = u^2 / 4 + u
        kl: g(P) = P, f*(u) = exp(u - 1)

    This is the paper's loss for each item. The released code averages P over all positions of the padded batch first,
    prompts and padding included, and then computes one loss. The two are equal for a single row without a prompt. The
    default divergence is that of the released code. The paper's y+ is a template answer such as "I don't know"; here it is
    the harmless response. The method uses no retain text.
    """

    name = "flat"
    title = "FLAT"
    paper = "Wang et al. 2024, LLM Unlearning via Loss Adjustment with Only Forget Data, arXiv:2410.11143"
    Config = FLATConfig
    search: ClassVar = {
        **Method.search,
        "divergence": Choice(("total_variation", "jensen_shannon", "pearson", "kl")),
    }
    config: FLATConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "harmful"})

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmless is not None
        assert batch.harmful is not None
        theta = self.read(model, batch)
        good, bad = mean_probability(theta, batch.harmless), mean_probability(theta, batch.harmful)
        g, conjugate = TERMS[self.config.divergence]
        total = mean_of(-g(good) + conjugate(bad))
        parts = {"harmless_probability": good, "harmful_probability": bad}
        return Loss(total, {name: float(mean_of(value.detach())) for name, value in parts.items()})


def mean_probability(theta: Pass, rows: Rows) -> Tensor:
    """Compute the mean probability of the response tokens of each row.

    Args:
        theta: A pass over the rows.
        rows: R rows of T tokens, with a response mask.

    Returns:
        (R,)
    """
    response = predicted(rows, rows.response_mask)
    p = token_logprobs(theta, rows, response).exp() * response
    return p.sum(1) / response.sum(1).clamp(min=1)
