"""Log-probabilities and KL divergences from the inputs of the output head, with gradients.

The logits of N tokens are a matrix (N, V), which is the largest tensor of a training step. `torch` would hold several of
them: the logits, their log-softmax, and gradients of both. Here the logits are computed for a few tokens at a time and
replaced at once by the derivative of the token's value by its logits. The backward pass needs nothing else: it is two
matrix products with this one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Number of logits that are computed at a time. In float32 they take 32 MB. With half as many, a CPU rearranges the weights
# of the head so often that the product takes a sixth longer.
CHUNK = 1 << 23

Logits = Callable[[Tensor], Tensor]
# Gives log q (n, V) of a target distribution in a new tensor, from the model's log p (n, V) of a part of the rows. It must
# not change log p. Where q is 0, log q is a finite number, because the product of 0 and infinity is not a number.
Target = Callable[[Tensor, slice], Tensor]


def logprobs(head: Any, states: Tensor, targets: Tensor) -> Tensor:
    """Compute the log-probability of a token for each input of the head.

    Args:
        head: The output head.
        states: Inputs of the head, (N, width).
        targets: Token ids, (N,).

    Returns:
        (N,) in nats, at least in float32.
    """
    if not is_linear(head, states):
        return -F.cross_entropy(at_least_float32(head(states)), targets, reduction="none")

    def value(logits: Tensor, part: slice) -> Tensor:
        at = targets[part].unsqueeze(1)
        values = log_softmax_(logits).gather(1, at).squeeze(1)
        # d log p(target) / d logits = 1[target] - softmax
        logits.exp_().neg_().scatter_add_(1, at, torch.ones_like(logits[:, :1]))
        return values

    return _values(head, states, value)


def kl_divergences(head: Any, states: Tensor, of_reference: Logits, before: Tensor) -> Tensor:
    """Compute KL(p_ref || p_theta) for each input of the head.

    Args:
        head: The output head of the model p_theta.
        states: Its inputs, (N, width).
        of_reference: Computes the logits of the reference p_ref from inputs of its head.
        before: These inputs, (N, width).

    Returns:
        (N,) in nats, at least in float32.
    """

    def reference(logp: Tensor, part: slice) -> Tensor:
        return log_softmax_(at_least_float32(of_reference(before[part])))

    return divergences(head, states, reference)


def divergences(head: Any, states: Tensor, target: Target, *, cross_entropy: bool = False) -> Tensor:
    """Compute KL(q || p_theta) for each input of the head, where the target q is held constant.

    Args:
        head: The output head.
        states: Inputs of the head, (N, width).
        target: Gives log q of a part of the inputs. It may depend on the model's own probabilities.
        cross_entropy: Compute -sum_v q(v) log p_theta(v) instead, which is larger by the entropy of q and has the same
            gradient.

    Returns:
        (N,) in nats, at least in float32.
    """
    if not is_linear(head, states):
        return divergences_of(head(states), target, cross_entropy=cross_entropy)

    def value(logits: Tensor, part: slice) -> Tensor:
        p = log_softmax_(logits)
        with torch.no_grad():
            q = target(p, part)
        # sum_v q (log q - log p), and its derivative by the logits of p, which is p - q
        gap = -p if cross_entropy else q - p
        q.exp_()
        values = (gap.mul_(q)).sum(1)
        p.exp_().sub_(q)
        return values

    return _values(head, states, value)


def divergences_of(logits: Tensor, target: Target, *, cross_entropy: bool = False) -> Tensor:
    """Compute what `divergences` computes, from logits.

    Args:
        logits: (N, V).
        target: Gives log q of all rows of logits.
        cross_entropy: Compute -sum_v q(v) log p_theta(v) instead.

    Returns:
        (N,) in nats, at least in float32.
    """
    logits = at_least_float32(logits)
    p = logits - logits.logsumexp(1, keepdim=True)
    with torch.no_grad():
        q = target(p.detach(), slice(None))
    if cross_entropy:
        return -(q.exp() * p).sum(-1)
    return F.kl_div(p, q, reduction="none", log_target=True).sum(-1)


def entropies(head: Any, states: Tensor) -> Tensor:
    """Compute the entropy -sum_v p(v) log p(v) for each input of the head.

    Args:
        head: The output head.
        states: Inputs of the head, (N, width).

    Returns:
        (N,) in nats, at least in float32.
    """
    if not is_linear(head, states):
        return entropies_of(head(states))

    def value(logits: Tensor, part: slice) -> Tensor:
        logp = log_softmax_(logits)
        p = logp.exp()
        values = -(p * logp).sum(1)
        # d entropy / d logits = -p (log p + entropy)
        logp.add_(values.unsqueeze(1)).mul_(p).neg_()
        return values

    return _values(head, states, value)


def entropies_of(logits: Tensor) -> Tensor:
    """Compute what `entropies` computes, from logits (N, V)."""
    logits = at_least_float32(logits)
    logp = logits - logits.logsumexp(1, keepdim=True)
    return -(logp.exp() * logp).sum(-1)


def logit_margins(head: Any, states: Tensor) -> Tensor:
    """Compute max_v z(v) - mean_v z(v) of the logits z for each input of the head.

    Args:
        head: The output head.
        states: Inputs of the head, (N, width).

    Returns:
        (N,), at least in float32.
    """
    if not is_linear(head, states):
        return logit_margins_of(head(states))

    def value(logits: Tensor, part: slice) -> Tensor:
        largest, at = logits.max(1, keepdim=True)
        values = (largest - logits.mean(1, keepdim=True)).squeeze(1)
        logits.fill_(-1 / logits.shape[1]).scatter_add_(1, at, torch.ones_like(largest))
        return values

    return _values(head, states, value)


def logit_margins_of(logits: Tensor) -> Tensor:
    """Compute what `logit_margins` computes, from logits (N, V)."""
    logits = at_least_float32(logits)
    return logits.max(1).values - logits.mean(1)


def is_linear(head: Any, states: Tensor) -> bool:
    """Return whether the head is a plain matrix product in the data type of the states, which is at least float32.

    Otherwise (an adapter, a quantised or offloaded head, a shard of a head, float16), the module must compute the logits
    itself. A head that is computed in bfloat16 (`rounded_to`) with weights in float32 counts as a plain product.

    Args:
        head: The output head.
        states: Its inputs.

    Returns:
        Whether it is.
    """
    rounded = rounded_to(head)
    return (
        type(head) is torch.nn.Linear
        and ("forward" not in vars(head) or rounded is torch.bfloat16)
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and type(head.weight) in (torch.nn.Parameter, Tensor)
        and not torch.is_autocast_enabled(states.device.type)
        and (
            head.weight.dtype == states.dtype and states.dtype in (torch.float32, torch.float64)
            if rounded is None
            else head.weight.dtype == torch.float32 and states.dtype in (torch.float32, rounded)
        )
    )


def rounded_to(head: Any) -> torch.dtype | None:
    """Return the data type in which mixed precision computes a head; None without mixed precision."""
    found: torch.dtype | None = getattr(vars(head).get("forward"), "autocast_dtype", None)
    return found


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32, which a softmax over a vocabulary needs. Other types are unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def log_softmax_(logits: Tensor) -> Tensor:
    """Replace logits (N, V) by log-probabilities.

    In float32, `torch.log_softmax` rounds the sum over a large vocabulary more than `logsumexp` does.
    """
    return logits.sub_(logits.logsumexp(1, keepdim=True))


def parts_of(rows: int, vocabulary: int) -> Iterator[slice]:
    """Divide rows of logits into parts of about `CHUNK` logits.

    Args:
        rows: Number of rows.
        vocabulary: Number of logits in a row.

    Returns:
        The parts.
    """
    size = max(1, CHUNK // vocabulary)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _values(head: Any, states: Tensor, value: Callable[[Tensor, slice], Tensor]) -> Tensor:
    inputs = (states, head.weight, head.bias)
    # Within the function, `torch` does not tell whether gradients are wanted.
    keeps = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    result: Tensor = _Readout.apply(*inputs, value, keeps, rounded_to(head))
    return result


class _Readout(torch.autograd.Function):
    """A value of each row of logits, of which only the derivative by the logits is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        value: Any,
        keeps: bool,
        rounded: torch.dtype | None,
    ) -> Tensor:
        """Compute the values.

        Args:
            ctx: Keeps what the backward pass needs.
            states: Inputs of the head (N, width).
            weight: Weight of the head (V, width).
            bias: Bias of the head (V,), or None.
            value: Called with a part of the logits and its slice. It returns the values of these rows, and replaces the
                logits by the derivatives of the values.
            keeps: Whether there will be a backward pass.
            rounded: Data type of the matrix products and of the derivatives that are kept; None for that of the states.
                The logits are float32 between the products.
        """
        ctx.types = states.dtype, weight.dtype
        vocabulary = len(weight)
        if rounded is not None:
            states, weight = states.to(rounded), weight.to(rounded)
            bias = None if bias is None else bias.to(rounded)
        values = states.new_empty(len(states), dtype=at_least_float32(states[:0]).dtype)
        in_place = rounded is None
        if keeps:
            size = len(states)
        else:  # one part at a time; rounded products cannot be written in place
            size = min(len(states), max(1, CHUNK // vocabulary)) if in_place else 0
        slopes = states.new_empty(size, vocabulary)
        for part in parts_of(len(states), vocabulary):
            if in_place:
                logits = slopes[part] if keeps else slopes[: part.stop - part.start]
                if bias is None:
                    torch.mm(states[part], weight.t(), out=logits)
                else:
                    torch.addmm(bias, states[part], weight.t(), out=logits)
            else:
                logits = at_least_float32(torch.nn.functional.linear(states[part], weight, bias))
            values[part] = value(logits, part)
            if keeps and not in_place:
                slopes[part] = logits
        if keeps:
            ctx.save_for_backward(states, weight, slopes)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_values: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        states, weight, slopes = ctx.saved_tensors
        of_states_type, of_weight_type = ctx.types
        wanted = ctx.needs_input_grad
        scale = of_values.unsqueeze(1)
        of_states = (slopes @ weight).to(of_states_type).mul_(scale) if wanted[0] else None
        of_weight = (slopes.t() @ (states * scale).to(slopes.dtype)).to(of_weight_type) if wanted[1] else None
        of_bias = (of_values.to(slopes.dtype) @ slopes).to(of_weight_type) if wanted[2] else None
        return of_states, of_weight, of_bias, None, None, None
