"""Models whose weights are not all where they are computed with: accelerate's hooks bring a module's weights for its pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs go: to its weights, or to where its hooks bring them (its first weight may be on `meta`)."""
    import torch

    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def is_spread(model: PreTrainedModel) -> bool:
    """Whether hooks bring the model's weights; such a model cannot be moved."""
    return hasattr(model, "_hf_hook")
