"""Sizes of a model that can be known without loading its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent
from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 512  # tokens whose logits are computed at once on a CPU; more only fill memory
WORKING_TOKENS = 1024  # of a forward pass on a CPU; with less memory a pass takes fewer

# Numbers as wide as the model that one layer holds for a token while it is computed: the feed-forward network's inner
# activations are about four widths; attention, residuals and normalised copies another eight.
_WIDTHS_OF_A_LAYER = 12
# The same, for what a layer keeps of a token until the backward pass. Roughly: `unlearn.memory` counts it exactly.
_WIDTHS_KEPT = 36


@dataclass(frozen=True)
class TokenMemory:
    """Bytes of memory that one token takes in a language model. All estimates of memory are made from these terms.

    Attributes:
        cache: Keys and values in all layers; an upper bound where attention heads share them.
        activations: What one layer computes in a forward pass; it is gone when the next layer is computed.
        kept_activations: What all layers keep until the backward pass.
        logits: Logits of the whole vocabulary, where they are read.
        logits_with_gradient: The same where a gradient is taken.
    """

    cache: int
    activations: int
    kept_activations: int
    logits: int
    logits_with_gradient: int

    @classmethod
    def of(cls, config: Any, dtype: Any) -> TokenMemory:
        """From a model's configuration and the type of its weights (a name or a `torch.dtype`)."""
        # A classifier of a plug-in may have a plain configuration.
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
        """A forward pass without logits."""
        return self.cache + self.activations


def logit_bytes(dtype: Any, *, gradient: bool) -> int:
    """Bytes of one logit at the peak: the logit and its log-softmax in float32, and its gradient where that is taken. In
    half precision the output of the head, and that output's gradient, are in memory as well."""
    size = dtype_bytes(dtype)
    return 4 * (2 + gradient) + (0 if size == 4 else size * (1 + gradient))


def dtype_bytes(dtype: Any) -> int:
    """Bytes of a number of this type (a name such as "bfloat16", or a `torch.dtype`)."""
    import torch

    return torch.finfo(getattr(torch, dtype) if isinstance(dtype, str) else dtype).bits // 8


def weights_bytes(path: Path, dtype: str) -> int:
    """Bytes of the weights in `path` once they are loaded in `dtype`; an upper bound for pickled weights, which do not say
    how many they are."""
    return dtype_bytes(dtype) * (count_parameters(path) or sum(p.stat().st_size for p in path.glob("*.bin")) // 2)


def working_memory(config: Any, dtype: str) -> int:
    """Bytes that a forward pass takes beside the weights of a model with this configuration."""
    token = TokenMemory.of(config, dtype)
    return min(WORKING_TOKENS, context_of(config)) * token.forward + HEAD_ROWS * token.logits


def context_length(model: PreTrainedModel, default: int = 2048) -> int:
    """How many tokens the model can attend to."""
    return context_of(model.config, default)


def context_of(config: Any, default: int = 2048) -> int:
    """How many tokens a model with this configuration can attend to."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return default


def context_length_of(path: Path) -> int:
    """How many tokens the model in a folder can attend to, read from its config.json."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def width_of(path: Path) -> int:
    """The hidden size of the model in a folder. Raises `UserError` if its configuration does not say it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=consent.code_allowed()).get_text_config()
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{path.name}/config.json has no hidden size, so learning rates cannot be tuned", "leave --tune out"
        )
    return width
