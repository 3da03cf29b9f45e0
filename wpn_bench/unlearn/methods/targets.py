"""Distributions of the next token that a loss trains towards, or away from.

A target gives log q for a part of the selected places of some rows (`engine/readout.py`). It is held constant: the gradient
of KL(q || p_theta) by the logits is p_theta - q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from wpn_bench.unlearn.processes import divisor

if TYPE_CHECKING:
    from torch import Tensor

    from wpn_bench.engine.readout import Target
    from wpn_bench.unlearn.batches import Rows
    from wpn_bench.unlearn.passes import Pass


def uniform() -> Target:
    """Return the uniform distribution over the vocabulary."""
    import torch

    return lambda logp, part: torch.full_like(logp, -math.log(logp.shape[1]))


def without(tokens: Tensor) -> Target:
    """Return the model's own distribution without one token: q(v) = p(v) / (1 - p(y)) for v other than y, and q(y) = 0.

    KL(q || p_theta) is then -log(1 - p(y)). It is exact also where p(y) rounds to 1.

    Args:
        tokens: The token y of each place, (N,).

    Returns:
        The target.
    """
    import torch

    from wpn_bench.engine.readout import log_softmax_

    def target(logp: Tensor, part: slice) -> Tensor:
        return log_softmax_(logp.scatter(1, tokens[part].unsqueeze(1), torch.finfo(logp.dtype).min / 2))

    return target


def lowered(logits: Callable[[slice], Tensor], tokens: Tensor, by: float) -> Target:
    """Return a softmax in which the logit of one token is smaller.

    Args:
        logits: Gives the logits (n, V) of a part of the places.
        tokens: The token of each place, (N,).
        by: How much smaller its logit is.

    Returns:
        The target.
    """
    import torch

    from wpn_bench.engine.readout import log_softmax_

    def target(logp: Tensor, part: slice) -> Tensor:
        at = tokens[part].unsqueeze(1)
        return log_softmax_(logits(part).scatter_add(1, at, torch.full_like(logp[:, :1], -by)))

    return target


def mean_divergence(theta: Pass, rows: Rows, mask: Tensor, target: Target, *, cross_entropy: bool = False) -> Tensor:
    """Compute KL(q || p_theta), averaged over the selected places of the whole batch.

    Args:
        theta: A pass over the rows.
        rows: R rows of T tokens.
        mask: (R, T-1), 1 at the selected places.
        target: The target q.
        cross_entropy: Compute -sum_v q(v) log p_theta(v) instead.

    Returns:
        A scalar in nats per token.
    """
    return theta.divergences(rows, mask, target, cross_entropy=cross_entropy).sum() / divisor(mask.sum())


def next_tokens(rows: Rows, mask: Tensor) -> Tensor:
    """Return the tokens that are predicted at selected places.

    Args:
        rows: R rows of T tokens.
        mask: (R, T-1), 1 at the N selected places.

    Returns:
        Token ids (N,), in the order of the rows.
    """
    return rows.input_ids[:, 1:][mask.bool()]
