"""Compute the sizes of a model, and the memory that it needs, without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import UserError
from wpn_bench.models.files import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALL = 20_000_000  # a model of fewer parameters is so fast that threads, and a selection of its inputs, gain nothing
HEAD_ROWS = 512  # number of tokens whose logits are computed at once on a CPU; more tokens would not be faster
WORKING_TOKENS = 1024  # largest number of tokens in a forward pass on a CPU

# The memory that one token needs while a layer is computed, in vectors of the hidden size. About four are inner
# activations of the feed-forward network. Eight are for attention, residuals and normalised copies.
_WIDTHS_OF_A_LAYER = 12
# The memory that a layer keeps for one token until the backward pass, in the same unit. This is an estimate.
# `unlearn.memory` counts exactly.
_WIDTHS_KEPT = 36


@dataclass(frozen=True)
class TokenMemory:
    """The memory in bytes that one token needs in a language model. All memory estimates use these terms.

    Attributes:
        cache: Keys and values in all layers. This is an upper bound if attention heads share them.
        activations: Activations of one layer in a forward pass. They are freed when the next layer is computed.
        kept_activations: Activations of all layers that are kept until the backward pass.
        logits: Logits of the whole vocabulary for one token.
        logits_with_gradient: Logits of the whole vocabulary for one token and their gradients.
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
        # The configuration of a classifier from a plug-in may lack get_text_config.
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
        """Return the bytes of a forward pass for one token, without its logits."""
        return self.cache + self.activations


def logit_bytes(dtype: Any, *, gradient: bool) -> int:
    """Return the largest number of bytes that one logit takes at the same time.

    The logit and its log-softmax are in float32, as is its gradient if one is computed. In half precision, the output
    of the head and the gradient of this output are in memory as well.

    Args:
        dtype: Data type of the weights (a name or a `torch.dtype`).
        gradient: Whether gradients are computed.

    Returns:
        The number of bytes.
    """
    size = dtype_bytes(dtype)
    return 4 * (2 + gradient) + (0 if size == 4 else size * (1 + gradient))


def dtype_bytes(dtype: Any) -> int:
    """Return the bytes of one number of this data type (a name such as "bfloat16", or a `torch.dtype`)."""
    import torch

    return torch.finfo(getattr(torch, dtype) if isinstance(dtype, str) else dtype).bits // 8


def weights_bytes(path: Path, dtype: str) -> int:
    """Return the number of bytes that a model's weights need in memory.

    Args:
        path: Folder of the model.
        dtype: Data type of the loaded weights.

    Returns:
        The number of bytes. It is an upper bound for pickled weights, whose number is only known after unpickling.
    """
    return dtype_bytes(dtype) * (count_parameters(path) or sum(p.stat().st_size for p in path.glob("*.bin")) // 2)


def working_memory(config: Any, dtype: str) -> int:
    """Return the number of bytes that a forward pass needs in addition to the weights.

    Args:
        config: Configuration of the model.
        dtype: Data type of the weights.

    Returns:
        The number of bytes.
    """
    token = TokenMemory.of(config, dtype)
    return min(WORKING_TOKENS, context_of(config)) * token.forward + HEAD_ROWS * token.logits


def context_length(model: PreTrainedModel, default: int = 2048) -> int:
    """Return the number of tokens to which a model can attend.

    Args:
        model: The model.
        default: Result if the configuration does not give the number.

    Returns:
        The number of tokens.
    """
    return context_of(model.config, default)


def context_of(config: Any, default: int = 2048) -> int:
    """Return the number of tokens to which a model with this configuration can attend.

    Args:
        config: Configuration of the model.
        default: Result if the configuration does not give the number.

    Returns:
        The number of tokens.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return default


def context_length_of(path: Path) -> int:
    """Return the number of tokens to which the model in a folder can attend, from its config.json.

    transformers reads the file, for two reasons. A multimodal model has its sizes in a part of the configuration. And
    the file need not contain a size that equals the default of the architecture.
    """
    return context_of(read_config(path))


def width_of(path: Path) -> int:
    """Return the hidden size of the model in a folder. Raises `UserError` if its configuration does not give it."""
    config = read_config(path).get_text_config()
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{path.name}/config.json has no hidden size, so learning rates cannot be tuned", "leave out --tune"
        )
    return width
