"""How much memory a training takes, estimated from the model's configuration alone.

The model is built on PyTorch's `meta` device, which has shapes and no data. What autograd would keep for the backward
pass is counted in a forward pass of one row, and taken times the rows of a micro-batch, all at full length: an upper
bound, since real rows are padded to the longest of their batch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wpn_bench.unlearn.lora import Adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wpn_bench.unlearn.methods.base import Method

# Float32 copies of a row's logits at the peak: the logits, their log-softmax, its gradient.
_LOGITS = 3


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
    """What training with `method` takes. `dtype` is the type that the model is saved in; with mixed precision the weights
    are float32 and activations half of that, with a copy of the weights in half precision."""
    import torch

    config = method.config
    mixed = config.mixed_precision != "no"
    # Built in the type that is computed in, for that decides what autograd keeps.
    computed = torch.bfloat16 if mixed else getattr(torch, dtype)
    with torch.device("meta"):
        model: PreTrainedModel = model_class(model_config).to(computed).train()
        parameters = sum(p.numel() for p in model.parameters())
        if config.lora:
            Adapters(model, config.lora, 0)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    size = 4 if mixed else torch.finfo(computed).bits // 8
    rows = _rows(method, model_config)
    activations = sum(n * (_of_a_row(model, length) + _LOGITS * 4 * length * _vocabulary(model)) for n, length in rows)
    if config.gradient_checkpointing:
        # One layer at a time is computed again, for the rows of one forward pass.
        activations += max(n * _of_a_layer(model_class, model_config, computed, length) for n, length in rows)
    return Training(
        parameters=parameters,
        trainable=trainable,
        weights=total * (size + 2 * mixed),
        reference=parameters * size if method.needs_reference else 0,
        gradients=trainable * size,
        optimizer=2 * trainable * size,
        activations=activations,
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


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


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


def _of_a_layer(model_class: Any, model_config: Any, dtype: Any, length: int) -> int:
    """Bytes that one layer keeps of one row when its activations are not recomputed."""
    import torch

    with torch.device("meta"):
        model = model_class(model_config).to(dtype).train()
    layers = int(model_config.get_text_config().num_hidden_layers)
    return _of_a_row(model, length) // layers
