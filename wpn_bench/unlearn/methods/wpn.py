"""WPN: weighted positional n-pair contrastive learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from wpn_bench.unlearn.methods.base import (
    Loss,
    Method,
    MethodConfig,
    Variant,
    mean_of,
    mean_over,
    plus_kl,
    predicted,
    token_logprobs,
)
from wpn_bench.unlearn.search import Log

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.batches import Batch, Rows
    from wpn_bench.unlearn.passes import Pass

PAPER = "Chen, Wang, Sun, Chen 2024, WPN (ECAI 2024), arXiv:2408.09459"
Pooling = Literal["position", "mean", "early", "last"]


class WPNConfig(MethodConfig):
    """Options of WPN.

    The default of `space` is `output`, which was ahead of `hidden` on the lab (docs/log.md). The nearest reading of the
    paper's public words is `space: hidden, pooling: position`, the variant `wpn:paper`.
    """

    space: Literal["output", "hidden", "both"] = Field(
        "output", description="what is contrasted: log-likelihoods (output), hidden states, or both with equal weight"
    )
    pooling: Pooling = Field(
        "position", description="weights of the tokens: position (late tokens weigh more), mean, early, or last"
    )
    half_life: float = Field(
        8.0, gt=0, description="number of tokens after which the weights of `pooling: early` halve"
    )
    n: int = Field(3, ge=2, description="N of the n-pair loss: one positive and N - 1 negatives per item")
    temperature: float = Field(1.0, gt=0)
    anchor: float = Field(1.0, ge=0, description="weight of the likelihood of the harmless response")
    kl: float = Field(1.0, ge=0, description="weight of KL(p_ref || p_theta) on retain text")


def pool(values: Tensor, mask: Tensor, pooling: Pooling, half_life: float = 8.0) -> Tensor:
    """Pool values over the tokens of a segment.

    Args:
        values: (R, T) or (R, T, H).
        mask: (R, T), 1 for the tokens of the segment.
        pooling: `position` weights token i of the segment by i / sum_i i, i = 1, 2, ... (Muennighoff 2022, SGPT), because
            later tokens attend to more context. `mean` weights all tokens equally. `early` weights token i by
            2^(-(i-1) / half_life), because the first tokens decide how a response goes on. `last` uses only the last
            token.
        half_life: Number of tokens after which the weights of `early` halve.

    Returns:
        (R,) or (R, H); zero for a row without tokens.
    """
    rank = mask.cumsum(1) * mask
    if pooling == "position":
        weight = rank
    elif pooling == "mean":
        weight = mask
    elif pooling == "early":
        weight = mask * 2.0 ** (-(rank - 1).clamp(min=0) / half_life)
    else:
        weight = (rank == rank.amax(1, keepdim=True)) * mask
    weight = weight.to(values.dtype)
    # The first token has a weight of at least 1, so only rows without tokens have a smaller sum.
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    if values.dim() == 3:
        weight = weight.unsqueeze(-1)
    return (values * weight).sum(1)


def n_pair(positive: Tensor, negatives: Tensor) -> Tensor:
    """Compute the n-pair loss log(1 + sum_j exp(s-_j - s+)) (Sohn 2016), averaged over the batch.

    Args:
        positive: Scores s+, (B,).
        negatives: Scores s-, (B, N-1).

    Returns:
        A scalar.
    """
    import torch

    gaps = negatives - positive.unsqueeze(1)
    return mean_of(torch.logsumexp(torch.cat([torch.zeros_like(gaps[:, :1]), gaps], dim=1), dim=1))


class WPN(Method):
    """L = log(1 + sum_j exp(s(x, y-_j) - s(x, y+))) + anchor * CE(y+ | x) + kl * KL(p_ref || p_theta)(retain).

    output space: s(x, y) = pool_t log p(y_t | x, y_<t) / temperature;
    hidden space: s(x, y) = cos(pool h(x), pool h(y | x)) / temperature, h the last layer;
    both: the mean of the n-pair losses of the two spaces.
    The paper's abstract describes n-pair contrast and position-weighted pooling, and the caption of its Figure 1 says that
    the pooling gives text representations, to which the contrast is applied. So the nearest reading of the paper is the
    hidden space with position-weighted pooling, `wpn:paper`. The output space, which is the default, and the anchor and KL
    terms of both are this project's choice.
    """

    name = "wpn"
    title = "WPN"
    paper = f"{PAPER} (abstract; details are this project's)"
    Config = WPNConfig
    variants: ClassVar = {
        "": Variant("ours", f"{PAPER} (abstract; the output space and other details are this project's)"),
        "paper": Variant(
            "paper",
            f"{PAPER} (nearest reading of its abstract and of the caption of its Figure 1: contrast of position-weighted mean "
            "hidden states; other details are this project's)",
            {"space": "hidden", "pooling": "position"},
        ),
    }
    search: ClassVar = {**Method.search, "anchor": Log(0.3, 3.0), "kl": Log(0.3, 3.0)}
    config: WPNConfig

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"harmless", "harmful", *(["retain"] if self.config.kl else [])})

    @property
    def negatives(self) -> int:
        return self.config.n - 1

    @property
    def needs_reference(self) -> bool:
        return self.config.kl > 0

    def loss(self, model: PreTrainedModel, batch: Batch, reference: PreTrainedModel | None) -> Loss:
        assert batch.harmless is not None
        assert batch.harmful is not None
        theta = self.read(model, batch, layer=None if self.config.space == "output" else -1)
        positives, ce = self._scores(theta, batch.harmless)
        negatives, _ = self._scores(theta, batch.harmful)
        losses = [
            n_pair(positive, negative.view(len(positive), self.negatives))
            for positive, negative in zip(positives, negatives, strict=True)
        ]
        contrast = sum(losses[1:], losses[0]) / len(losses)
        parts = {"n_pair": float(contrast.detach()), "harmless_loss": float(ce.detach())}
        loss = Loss(contrast + self.config.anchor * ce, parts)
        return plus_kl(loss, self.config.kl, theta, reference, batch.retain)

    def _scores(self, theta: Pass, rows: Rows) -> tuple[list[Tensor], Tensor]:
        """Return the scores s(x, y) of each row in each space (R,), and the mean loss of the response tokens, a scalar."""
        response = predicted(rows, rows.response_mask)
        logp = token_logprobs(theta, rows, response)
        scores = []
        if self.config.space != "hidden":
            scores.append(self._pool(logp, response))
        if self.config.space != "output":
            import torch.nn.functional as F

            hidden = theta.states(rows)
            of_prompt, of_response = (self._pool(hidden, mask) for mask in (rows.prompt_mask, rows.response_mask))
            scores.append(F.cosine_similarity(of_prompt, of_response, dim=-1))
        return [score / self.config.temperature for score in scores], -mean_over(logp, response)

    def _pool(self, values: Tensor, mask: Tensor) -> Tensor:
        return pool(values, mask, self.config.pooling, self.config.half_life)
