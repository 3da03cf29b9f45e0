"""Sizes of a model, computed without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import UserError
from wpn_bench.models.files import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 512  # tokens whose logits are computed at once on a CPU; more would only need more memory
WORKING_TOKENS = 1024  # tokens of a forward pass on a CPU; a pass has fewer if memory is short

# Memory of one layer for a token while it is computed, in vectors of the hidden size: about four for inner activations
# of the feed-forward network, eight for attention, residuals and normalised copies.
_WIDTHS_OF_A_LAYER = 12
# The same for what a layer keeps until the backward pass. This is an estimate; `unlearn.memory` counts exactly.
_WIDTHS_KEPT = 36


@dataclass(frozen=True)
class TokenMemory:
    """The memory that one token needs in a language model, in bytes. All memory estimates use these terms.

    Attributes:
        cache: Keys and values in all layers; an upper bound if attention heads share them.
        activations: Activations of one layer in a forward pass. They are freed when the next layer is computed.
        kept_activations: Activations of all layers that are kept until the backward pass.
        logits: Logits of the whole vocabulary, for a token whose logits are used.
        logits_with_gradient: The same if gradients are computed.
    """

    cache: int
    activations: int
    kept_activations: int
    logits: int
    logits_with_gradient: int

    @classmethod
    def of(cls, config: Any, dtype: Any) -> TokenMemory:
        """Estimate the memory from a model's configuration.

        Args:
            config: The configuration of the model.
            dtype: Type of the weights (a name or a `torch.dtype`).

        Returns:
            The memory of one token.
        """
        # The configuration of a plug-in's classifier may lack get_text_config.
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        width = dtype_bytes(dtype) * int(getattr(text, "hidden_size", 768))
        layers, vocabulary = int(getattr(text, "num_hidden_layers", 12)), int(getattr(text, "vocab_size", 50_000))
        return cls(
            cache=2 * layers * width,
            activations=_WIDTHS_OF_A_LAYER * width,
            kept_activations=_WIDTHS_KEPT * layers * width,
            logits=logit_bytes(dtype, gradient=False) * vocabulary,
            logits_with_gradient=logit_bytes(dtype, gradient=True) * vocabulary,
        )

    @property
    def forward(self) -> int:
        """Bytes of a forward pass without logits."""
        return self.cache + self.activations


def logit_bytes(dtype: Any, *, gradient: bool) -> int:
    """Return the bytes of one logit at the peak.

    These are the logit and its log-softmax in float32, and its gradient if computed. In half precision, the output of
    the head, and the gradient of that output, are in memory as well.

    Args:
        dtype: Type of the weights (a name or a `torch.dtype`).
        gradient: Whether gradients are computed.

    Returns:
        Number of bytes.
    """
    size = dtype_bytes(dtype)
    return 4 * (2 + gradient) + (0 if size == 4 else size * (1 + gradient))


def dtype_bytes(dtype: Any) -> int:
    """Return the bytes of a number of this type (a name such as "bfloat16", or a `torch.dtype`)."""
    import torch

    return torch.finfo(getattr(torch, dtype) if isinstance(dtype, str) else dtype).bits // 8


def weights_bytes(path: Path, dtype: str) -> int:
    """Return the bytes of a model's weights once they are loaded.

    Args:
        path: The folder of the model.
        dtype: Type of the loaded weights.

    Returns:
        Number of bytes; an upper bound for pickled weights, whose number is not known without unpickling.
    """
    return dtype_bytes(dtype) * (count_parameters(path) or sum(p.stat().st_size for p in path.glob("*.bin")) // 2)


def working_memory(config: Any, dtype: str) -> int:
    """Return the bytes that a forward pass needs in addition to the weights.

    Args:
        config: The configuration of the model.
        dtype: Type of the weights.

    Returns:
        Number of bytes.
    """
    token = TokenMemory.of(config, dtype)
    return min(WORKING_TOKENS, context_of(config)) * token.forward + HEAD_ROWS * token.logits


def context_length(model: PreTrainedModel, default: int = 2048) -> int:
    """Return how many tokens a model can attend to.

    Args:
        model: The model.
        default: The result if the configuration does not contain it.

    Returns:
        Number of tokens.
    """
    return context_of(model.config, default)


def context_of(config: Any, default: int = 2048) -> int:
    """Return how many tokens a model with this configuration can attend to.

    Args:
        config: The configuration of the model.
        default: The result if the configuration does not contain it.

    Returns:
        Number of tokens.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return default


def context_length_of(path: Path) -> int:
    """Return how many tokens the model in a folder can attend to, from its config.json.

    transformers reads the file, because a multimodal model has its sizes in a part of the configuration, and because
    the file need not contain a size that equals the default of the architecture.
    """
    return context_of(read_config(path))


def width_of(path: Path) -> int:
    """Return the hidden size of the model in a folder. Raises `UserError` if its configuration does not contain it."""
    config = read_config(path).get_text_config()
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{path.name}/config.json has no hidden size, so learning rates cannot be tuned", "leave --tune out"
        )
    return width
