"""Offloaded models: accelerate's hooks load a module's weights when the module is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def device_of(model: PreTrainedModel) -> torch.device:
    """The device of a model's inputs: that of its weights, or the one where its hooks load them (the first weight of an
    offloaded model may be on `meta`)."""
    import torch

    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def is_spread(model: PreTrainedModel) -> bool:
    """Whether the model is offloaded: hooks load its weights, and it cannot be moved to another device."""
    return hasattr(model, "_hf_hook")
