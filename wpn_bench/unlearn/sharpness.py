"""Sharpness-aware minimisation (SAM): the gradient of a loss at weights that are moved to where the loss is larger.

Foret et al. 2021 (arXiv:2010.01412, equations 2 and 3), and for unlearning Fan et al. 2025 ("Towards LLM Unlearning Resilient to
Relearning Attacks", arXiv:2502.05374). With the gradient g of the loss at the weights w, a step uses the gradient at w + rho g / |g|. A
model in a flat part of the loss changes less when it is trained further, so that relearning should take longer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call

from wpn_bench.unlearn.methods.base import Loss


def loss_nearby(model: torch.nn.Module, loss: Callable[[], Loss], rho: float) -> Loss:
    """Compute a loss at the moved weights. Its gradient with respect to the model's weights is that of SAM.

    The whole loss is moved, with its retain terms. Fan et al. move the forget term alone, which not all methods have apart.

    Args:
        model: The trained model. Its weights are unchanged afterwards.
        loss: Computes the loss with the model's weights. It is called twice.
        rho: Norm of the move, over all trained weights together.

    Returns:
        The loss at the moved weights, and its parts with `loss_at_the_weights`, the loss before the move.
    """
    trained = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    plain = loss()
    found = torch.autograd.grad(plain.total, list(trained.values()), allow_unused=True)
    norm = torch.linalg.vector_norm(torch.stack([g.detach().float().norm() for g in found if g is not None]))
    before = float(plain.total.detach())
    del plain
    if not bool(torch.isfinite(norm)) or not float(norm):
        plain = loss()  # nowhere to move; a gradient that is not finite is reported where gradients are checked
        return Loss(plain.total, {**plain.parts, "loss_at_the_weights": before})
    moved = {
        name: p if g is None else p + (g.to(p.dtype) * (rho / norm)).detach()
        for (name, p), g in zip(trained.items(), found, strict=True)
    }
    del found
    nearby: Loss = functional_call(_Computed(model, loss), moved, ())
    return Loss(nearby.total, {**nearby.parts, "loss_at_the_weights": before})


class _Computed(torch.nn.Module):
    """A loss as a module that owns the model, so that `functional_call` can replace its weights."""

    def __init__(self, model: torch.nn.Module, loss: Callable[[], Loss]) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self._loss = loss

    def forward(self) -> Loss:
        return self._loss()
