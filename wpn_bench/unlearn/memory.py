"""Estimate the memory of a training from the configuration of the model alone.

The model is built on PyTorch's `meta` device, where tensors have shapes but no data. A forward pass of one row counts
the bytes that autograd would keep for the backward pass. These are multiplied by the number of rows in a micro-batch,
all at maximum length. The estimate is an upper bound, because real rows are only padded to the longest row of their
batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from wpn_bench.models.sizes import TokenMemory, context_of, dtype_bytes, logit_bytes
from wpn_bench.unlearn.lora import Adapters
from wpn_bench.unlearn.methods.base import LoRAConfig
from wpn_bench.unlearn.undo import Distilling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.methods.base import Method


@dataclass(frozen=True)
class Training:
    """Memory of one training in bytes.

    Attributes:
        parameters: Number of parameters of the model.
        trainable: Number of trained parameters.
        weights: Bytes of the weights, including adapters.
        reference: Bytes of the frozen reference, or of a copy of the base's weights, and of the teacher of a distillation.
        gradients: Bytes of the gradients.
        optimizer: Bytes of Adam's two moments.
        activations: Bytes that autograd keeps for the backward pass.
    """

    parameters: int
    trainable: int
    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Return the peak memory in bytes.

        Adam's step needs one more copy of the trained weights. At that time the activations have been freed.
        """
        kept = self.weights + self.reference + self.gradients + self.optimizer
        return kept + max(self.activations, self.gradients)


def of_training(model_class: Any, model_config: Any, method: Method, dtype: str) -> Training:
    """Estimate the memory of a training.

    With mixed precision, the weights are in float32, and the activations and a copy of the weights are in half
    precision. Adapters are always in float32. They need no separate reference model, because the reference is the model
    without them.

    Args:
        model_class: Class of the model.
        model_config: Configuration of the model.
        method: The unlearning method with its settings.
        dtype: Data type of the saved model.

    Returns:
        The bytes of each part.
    """
    config = method.config
    # A method that changes the trained weights at the end keeps a copy of those of the base.
    base_kept = method.needs_reference or method.change != 1
    # The teacher of a distillation is held beside the reference of the method, and after a copy of the base's weights is gone.
    copies = method.needs_reference + 1 if config.undo else int(base_kept)
    mixed = config.mixed_precision != "no"
    # The data type of the forward pass decides what autograd keeps.
    computed = "bfloat16" if mixed else dtype
    size = 4 if mixed else dtype_bytes(dtype)

    def shape(length: int, checkpointing: bool) -> _Shape:
        lora = config.lora.model_dump_json() if config.lora else ""
        return _shape(model_class, _Described(model_config), computed, lora, checkpointing, length)

    activations, again = 0, 0
    for trained_by in (method, *([Distilling(config)] if config.undo else [])):
        kept = 0
        for n, length in _rows(trained_by, model_config):
            one = shape(length, config.gradient_checkpointing)
            kept += n * (one.row + logit_bytes(computed, gradient=True) * length * one.vocabulary)
            if config.gradient_checkpointing:
                # The backward pass recomputes one layer at a time, for all rows of one forward pass.
                layers = int(model_config.get_text_config().num_hidden_layers)
                again = max(again, n * shape(length, False).row // layers)
        activations = max(activations, kept)
    trained = 4 if config.lora else size
    return Training(
        parameters=one.parameters,
        trainable=one.trainable,
        weights=one.parameters * (size + 2 * mixed) + (one.held - one.parameters) * (trained + 2 * mixed),
        reference=0 if config.lora else copies * one.parameters * size,
        gradients=one.trainable * trained,
        optimizer=2 * one.trainable * trained,
        activations=activations + again,
    )


def of_a_row(model_class: Any, model_config: Any, dtype: str, length: int) -> int:
    """Estimate how many bytes autograd keeps for one row, including logits.

    This is an upper bound if the weights are not trained.

    Args:
        model_class: Class of the model.
        model_config: Configuration of the model.
        dtype: Data type of the weights.
        length: Number of tokens in the row.

    Returns:
        The number of bytes.
    """
    one = _shape(model_class, _Described(model_config), dtype, "", False, length)
    return one.row + logit_bytes(dtype, gradient=True) * length * one.vocabulary


@dataclass(frozen=True)
class _Shape:
    """Sizes of a model.

    Attributes:
        parameters: Number of its own parameters.
        held: Number of parameters including adapters.
        trainable: Number of trained parameters.
        vocabulary: Number of rows in the input embedding.
        row: Bytes that autograd keeps for one row, without the output head.
    """

    parameters: int
    held: int
    trainable: int
    vocabulary: int
    row: int


class _Described:
    """A configuration as the key of a cache. Equal settings give equal keys.

    It keeps the configuration itself, because JSON cannot hold all its values (Mamba 2 has an infinite limit).
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self._text = config.to_json_string(use_diff=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Described) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@cache
def _shape(model_class: Any, described: _Described, dtype: str, lora: str, checkpointing: bool, length: int) -> _Shape:
    import torch

    settings = copy.deepcopy(described.config)
    with torch.device("meta"):
        model: PreTrainedModel = model_class(settings).to(getattr(torch, dtype)).train()
        parameters = sum(p.numel() for p in model.parameters())
        if lora:
            Adapters(model, LoRAConfig.model_validate_json(lora), 0)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return _Shape(
        parameters=parameters,
        held=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        row=_of_a_row(model, length),
    )


def _rows(method: Method, model_config: Any) -> list[tuple[int, int]]:
    """Return (number of rows, tokens per row) for each kind of row in a micro-batch."""
    config = method.config
    context = context_of(model_config, config.max_length)
    forget, retain = min(config.max_length, context), min(config.retain_max_length, context)
    every = {
        "harmless": (config.batch_size, forget),
        "harmful": (config.batch_size * method.negatives, forget),
        "random": (config.batch_size * method.random_answers, forget),
        "retain": (config.retain_batch_size, retain),
    }
    return [every[kind] for kind in every if kind in method.uses]


def _of_a_row(model: PreTrainedModel, length: int) -> int:
    """Return the bytes that autograd keeps for one row of `length` tokens, without the output head.

    Some models cannot run without data: mixture-of-experts models choose experts by values, and state-space models and
    models with ALiBi need other masks. For these, a formula from the hidden size and the number of layers is used, for
    each expert of a token.
    """
    try:
        return _counted(model, length)
    except Exception:  # the type of the exception depends on the architecture
        text = model.config.get_text_config()
        experts = max(int(getattr(text, name, None) or 1) for name in ("num_experts_per_tok", "moe_topk"))
        return length * experts * TokenMemory.of(model.config, model.dtype).kept_activations


def _counted(model: PreTrainedModel, length: int) -> int:
    """Count the bytes that autograd keeps for one row of `length` tokens, in a forward pass without data."""
    import torch

    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # keeps the storages alive, because the address of a freed one could be reused

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(
            input_ids=torch.ones(1, length, dtype=torch.long),
            # A mask of four dimensions is used as it is. A mask of another shape is converted, which reads its values.
            attention_mask=torch.zeros(1, 1, length, length, dtype=model.dtype),
            position_ids=torch.arange(length).unsqueeze(0),
            use_cache=False,
        )
    return sum(storage.nbytes() for storage in kept.values())
