"""The output head, computed only where its logits are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Computes logits from the head's inputs (R, width): float32 tiles (R, part of the vocabulary), each with its first token id.
Head = Callable[["Tensor"], Iterator[tuple[int, "Tensor"]]]

# Tokens of the vocabulary in a tile. With 512 rows a tile of logits has 2 MB, which stays in the CPU's caches from the matrix
# product to the sum of the exponentials.
TILE = 1024
ACCELERATOR_TILE = 16_384


@dataclass(frozen=True)
class Tiles:
    """The logits of a linear head with weights (V, width), a part of the vocabulary at a time. Offloaded weights are loaded
    meanwhile."""

    head: Any

    @classmethod
    def of(cls, head: Any) -> Head:
        """Tiles of a head that is a plain linear layer; any other head (with adapters, quantised) gives all logits at once."""
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
    """Logits (R, V) of all tiles, for a few rows."""
    import torch

    return torch.cat([logits for _, logits in head(inputs)], dim=-1)


@contextmanager
def head_only_at(model: PreTrainedModel, keep: Tensor) -> Iterator[None]:
    """While the context lasts, the head computes only the tokens where `keep` (R, T) is 1: its logits are (1, N, V).

    The head is most of a small model's work (OPT's vocabulary has 50,272 tokens), and its logits on prompts and padding are
    not used.
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
    """While the context lasts, the inputs of the head are collected, and the head itself computes only one token of a row."""
    inputs: list[Tensor] = []

    def collect(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(given[0])
        return (given[0][:, :1], *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(collect)
    try:
        yield inputs
    finally:
        handle.remove()
