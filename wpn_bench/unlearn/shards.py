"""Gather and shard the weights and optimiser states of FSDP.

Tensors that are not sharded are returned unchanged, so that the same code writes the checkpoints of every kind of
training. This module imports torch, so import it only where training begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """Gather a sharded tensor into the main memory of every process. All processes must call this function together."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def like(value: Any, weight: Any) -> Any:
    """Shard a tensor in the same way as a weight.

    Args:
        value: A whole tensor.
        weight: The weight.

    Returns:
        The sharded tensor. `value` itself if the weight is not sharded or has another shape, as for an optimiser's step
        counter.
    """
    if isinstance(weight, DTensor) and value.shape == weight.shape:
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value


def gather(source: Any, target: Any | None) -> None:
    """Copy the weights of a sharded model into a whole one. All processes must call this function together.

    Args:
        source: The sharded model.
        target: The same model with whole weights; None in processes that do not hold it.
    """
    kept = {} if target is None else dict(target.named_parameters())
    with torch.no_grad():
        for name, weight in source.named_parameters():
            value = whole(weight.detach())
            if kept:
                kept[name].copy_(value)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """Return the optimiser's state with whole tensors, as in a single process."""
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {k: {name: whole(v) for name, v in of.items()} for k, of in state["state"].items()}
    return state


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a state with whole tensors into an optimiser, sharded like its weights.

    Args:
        optimizer: The optimiser.
        state: The output of `optimizer_state`.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {k: {name: like(v, weights[k]) for name, v in of.items()} for k, of in state["state"].items()}
    optimizer.load_state_dict({**state, "state": spread})
