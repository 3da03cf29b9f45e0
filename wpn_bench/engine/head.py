"""Compute the output head (the layer that gives the logits) only for tokens whose logits are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Computes the logits of the head's inputs (R, width) in tiles, which are slices of the vocabulary. It yields
# (first token id, float32 logits (R, tile size)).
Head = Callable[["Tensor"], Iterator[tuple[int, "Tensor"]]]

# Number of token ids in a tile. With 512 rows, the logits of a tile take 2 MB. They stay in the CPU's caches between the
# matrix product and the sum of the exponentials.
TILE = 1024
ACCELERATOR_TILE = 16_384


@dataclass(frozen=True)
class Tiles:
    """Computes the logits of a linear head with weights (V, width), one slice of the vocabulary at a time.

    Offloaded weights are loaded for the duration of the computation.
    """

    head: Any

    @classmethod
    def of(cls, head: Any) -> Head:
        """Return a plain linear head split into tiles. Any other head (adapter, quantised) is one tile."""
        import torch

        if type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks:
            return lambda inputs: iter([(0, head(inputs).float())])
        return cls(head)

    def __call__(self, inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
        from accelerate.utils import align_module_device
        from torch.nn.functional import linear

        with align_module_device(self.head):
            weight, whole = self.head.weight, self.head.bias
            size = TILE if weight.device.type == "cpu" else ACCELERATOR_TILE
            for first in range(0, len(weight), size):
                part = slice(first, first + size)
                bias = None if whole is None else whole[part]
                yield first, linear(inputs, weight[part], bias).float()


def all_logits(head: Head, inputs: Tensor) -> Tensor:
    """Return the logits of the whole vocabulary, for a small number of rows.

    Args:
        head: Computes the logits in tiles.
        inputs: Inputs of the head (R, width).

    Returns:
        The logits (R, V) in float32.
    """
    import torch

    return torch.cat([logits for _, logits in head(inputs)], dim=-1)


@contextmanager
def head_only_at(model: PreTrainedModel, keep: Tensor) -> Iterator[None]:
    """Compute the head only for some tokens, within a `with` block.

    The logits are then (1, N, V) for N such tokens. In a small model the head does most of the work (OPT has a
    vocabulary of 50,272 tokens), and the logits of prompts and padding are not used.

    Args:
        model: The model.
        keep: (R, T), 1 for tokens whose logits are computed.
    """
    head = model.get_output_embeddings()
    wanted = keep.bool()
    handle = head.register_forward_pre_hook(lambda module, given: (given[0][wanted].unsqueeze(0), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_input(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the inputs of the head within a `with` block. The head itself computes only one token per row."""
    inputs: list[Tensor] = []

    def collect(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(given[0])
        return (given[0][:, :1], *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(collect)
    try:
        yield inputs
    finally:
        handle.remove()


@contextmanager
def last_inputs(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the head's inputs (R, width) of the last tokens, within a `with` block. The head computes one token."""
    inputs: list[Tensor] = []

    def collect(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(given[0][:, -1])
        return (given[0][:1, :1], *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(collect)
    try:
        yield inputs
    finally:
        handle.remove()
