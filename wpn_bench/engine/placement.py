"""Find the devices of offloaded models.

Hooks of accelerate load the weights of a module each time it is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def device_of(model: PreTrainedModel) -> torch.device:
    """Return the device of a model's inputs.

    This is the device of the weights. For an offloaded model, it is the device to which hooks load the weights, because
    the first weight may be on the device `meta`.
    """
    import torch

    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return model.device if device is None else torch.device(device)


def is_spread(model: PreTrainedModel) -> bool:
    """Return whether the model is offloaded. Hooks then load its weights, and it cannot be moved to another device."""
    return hasattr(model, "_hf_hook")
