"""Change the trained weights once training has ended: base + scale * (trained - base)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Change:
    """Scales the difference between a trained model and the model before its training.

    It keeps a copy of the weights on the device of the model.
    """

    def __init__(self, model: PreTrainedModel, scale: float) -> None:
        """Copy the weights.

        Args:
            model: The model before its training.
            scale: The factor of the change.
        """
        self.scale = scale
        self._base = {name: p.detach().clone() for name, p in model.named_parameters()}

    def apply(self, model: PreTrainedModel) -> None:
        """Change the weights of the trained model in place."""
        import torch

        with torch.no_grad():
            for name, p in model.named_parameters():
                base = self._base[name]
                p.copy_(base + self.scale * (p - base))

    def changed_copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return a changed copy of the trained model, which stays as it is."""
        changed = copy.deepcopy(model)
        self.apply(changed)
        return changed
