"""Estimate the memory of a training from the model's configuration alone.

The model is built on PyTorch's `meta` device, which has shapes and no data. What autograd would keep for the backward
pass is counted in a forward pass of one row, and taken times the rows of a micro-batch, all at full length: an upper
bound, since real rows are padded to the longest of their batch only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from wpn_bench.models.sizes import dtype_bytes, logit_bytes
from wpn_bench.unlearn.lora import Adapters
from wpn_bench.unlearn.methods.base import LoRAConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.methods.base import Method


@dataclass(frozen=True)
class Training:
    """Bytes of one training. `parameters` and `trainable` are numbers of weights."""

    parameters: int
    trainable: int
    weights: int
    reference: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The peak: activations are gone when Adam takes its step, which needs one more copy of what it changes."""
        kept = self.weights + self.reference + self.gradients + self.optimizer
        return kept + max(self.activations, self.gradients)


def of_training(model_class: Any, model_config: Any, method: Method, dtype: str) -> Training:
    """Estimate the memory of a training.

    With mixed precision the weights are float32, and activations and a copy of the weights are in half precision. Adapters are
    always float32 and need no reference, which is the model without them.

    Args:
        model_class: The model's class.
        model_config: Its configuration.
        method: The unlearning method, which has the settings.
        dtype: Type in which the model is saved.

    Returns:
        Bytes of each part.
    """
    config = method.config
    mixed = config.mixed_precision != "no"
    # In the type that is computed in, for that decides what autograd keeps.
    computed = "bfloat16" if mixed else dtype
    size = 4 if mixed else dtype_bytes(dtype)

    def shape(length: int, checkpointing: bool) -> _Shape:
        lora = config.lora.model_dump_json() if config.lora else ""
        return _shape(model_class, model_config.to_json_string(use_diff=False), computed, lora, checkpointing, length)

    activations, again = 0, 0
    for n, length in _rows(method, model_config):
        one = shape(length, config.gradient_checkpointing)
        activations += n * (one.row + logit_bytes(computed, gradient=True) * length * one.vocabulary)
        if config.gradient_checkpointing:
            # One layer at a time is computed again, for the rows of one forward pass.
            layers = int(model_config.get_text_config().num_hidden_layers)
            again = max(again, n * shape(length, False).row // layers)
    trained = 4 if config.lora else size
    return Training(
        parameters=one.parameters,
        trainable=one.trainable,
        weights=one.parameters * (size + 2 * mixed) + (one.held - one.parameters) * (trained + 2 * mixed),
        reference=one.parameters * size if method.needs_reference and not config.lora else 0,
        gradients=one.trainable * trained,
        optimizer=2 * one.trainable * trained,
        activations=activations + again,
    )


def of_a_row(model_class: Any, model_config: Any, dtype: str, length: int) -> int:
    """Bytes that autograd keeps of one row, logits included; an upper bound where the weights are not trained.

    Args:
        model_class: The model's class.
        model_config: Its configuration.
        dtype: Type of its weights.
        length: Tokens of the row.

    Returns:
        The bytes.
    """
    one = _shape(model_class, model_config.to_json_string(use_diff=False), dtype, "", False, length)
    return one.row + logit_bytes(dtype, gradient=True) * length * one.vocabulary


@dataclass(frozen=True)
class _Shape:
    """A model's weights (its own, those with adapters, those that are trained), its vocabulary, and the bytes that autograd
    keeps of one row, but for the output head's."""

    parameters: int
    held: int
    trainable: int
    vocabulary: int
    row: int


@cache
def _shape(model_class: Any, described: str, dtype: str, lora: str, checkpointing: bool, length: int) -> _Shape:
    import torch

    settings = model_class.config_class.from_dict(json.loads(described))
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
    """(number, tokens) of the rows of a micro-batch, kind by kind."""
    config = method.config
    context = int(getattr(model_config.get_text_config(), "max_position_embeddings", config.max_length))
    forget, retain = min(config.max_length, context), min(config.retain_max_length, context)
    every = {
        "harmless": (config.batch_size, forget),
        "harmful": (config.batch_size * method.negatives, forget),
        "random": (config.batch_size * method.random_answers, forget),
        "retain": (config.retain_batch_size, retain),
    }
    return [every[kind] for kind in every if kind in method.uses]


def _of_a_row(model: PreTrainedModel, length: int) -> int:
    """Bytes that autograd keeps of one row of `length` tokens, but for the output head's."""
    import torch

    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # with its storage, whose address could else be given to another

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(
            input_ids=torch.ones(1, length, dtype=torch.long),
            # Of four dimensions, so that no mask is made of it, which would look at its values.
            attention_mask=torch.zeros(1, 1, length, length, dtype=model.dtype),
            position_ids=torch.arange(length).unsqueeze(0),
            use_cache=False,
        )
    return sum(storage.nbytes() for storage in kept.values())
