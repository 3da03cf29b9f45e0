"""Sizes of a model that can be known without loading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent
from wpn_bench.core.weights import count_parameters
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 512  # tokens whose logits are computed at once on a CPU; more only fill memory
WORKING_TOKENS = 1024  # that a pass of measuring holds at a time; with less memory it is content with fewer


def weights_bytes(path: Path, dtype: str) -> int:
    """What the weights in `path` take once loaded in `dtype`; of pickled ones, which do not say, an upper bound."""
    import torch

    size = torch.finfo(getattr(torch, dtype)).bits // 8
    return size * (count_parameters(path) or sum(p.stat().st_size for p in path.glob("*.bin")) // 2)


def working_memory(config: Any, dtype: str) -> int:
    """Bytes that measuring takes beside the weights of a model with this configuration: what a pass computes, and the
    keys and values of its tokens."""
    import torch

    text = config.get_text_config()
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    layers, width = int(getattr(text, "num_hidden_layers", 12)), int(getattr(text, "hidden_size", 768))
    tokens = min(WORKING_TOKENS, context_of(config))
    # As `Budget.measured`; the logits of the tokens that are read are float32, twice while a token is chosen.
    return tokens * size * width * (12 + 2 * layers) + 8 * HEAD_ROWS * int(getattr(text, "vocab_size", 50_000))


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
    """`context_length` without loading weights."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def width_of(path: Path) -> int:
    """The hidden size, without loading weights; `UserError` where the configuration does not say it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=consent.code_allowed()).get_text_config()
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{path.name}/config.json has no hidden size, so learning rates cannot be tuned", "leave --tune out"
        )
    return width
