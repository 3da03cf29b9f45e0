"""Weights and optimiser states that FSDP spreads over processes, put together and taken apart again.

Everything that is not spread passes through as it is, so that one and the same code keeps the checkpoints of every kind of
training. Imports torch: import it where training begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """A tensor put together from its parts, in the main memory of every process; all of them must ask for it at once."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def like(value: Any, weight: Any) -> Any:
    """A whole tensor spread as `weight` is, if it has its shape (the number of steps that an optimiser keeps has not)."""
    if isinstance(weight, DTensor) and value.shape == weight.shape:
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value


def gather(source: Any, target: Any | None) -> None:
    """Copy the weights of the spread model `source` into `target`, the same model whole (None: another process has it)."""
    kept = {} if target is None else dict(target.named_parameters())
    with torch.no_grad():
        for name, weight in source.named_parameters():
            value = whole(weight.detach())
            if kept:
                kept[name].copy_(value)


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """Its state with whole tensors, as one process alone would have it."""
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {k: {name: whole(v) for name, v in of.items()} for k, of in state["state"].items()}
    return state


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Take up a state with whole tensors."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    spread = {k: {name: like(v, weights[k]) for name, v in of.items()} for k, of in state["state"].items()}
    optimizer.load_state_dict({**state, "state": spread})
