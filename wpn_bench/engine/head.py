"""The output head, only where its logits are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# From what comes to the head (R, width): logits in float32, (R, part of the vocabulary) at a time, each with its first id.
Head = Callable[["Tensor"], Iterator[tuple[int, "Tensor"]]]

# Entries of the vocabulary at once: with 512 rows a tile of logits is 2 MB, which the processor's caches hold from the
# product to the sum of the exponentials.
TILE = 1024
ACCELERATOR_TILE = 16_384


@dataclass(frozen=True)
class Tiles:
    """The logits of a linear head with weights (V, width), a part of the vocabulary at a time. Weights that are elsewhere
    are brought for as long as that takes."""

    head: Any

    @classmethod
    def of(cls, head: Any) -> Head:
        """Of a head that is a linear layer and no more; any other (adapted, quantised) gives its logits in one piece."""
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
    """(R, V) of a few rows."""
    import torch

    return torch.cat([logits for _, logits in head(inputs)], dim=-1)


@contextmanager
def head_only_at(model: PreTrainedModel, keep: Tensor) -> Iterator[None]:
    """Within it, the model's head sees only the places where `keep` (R, T) is 1: its logits come out as (1, N, V).

    The head is most of a small model's work (50,272 rows of OPT's vocabulary a token), and nothing reads it on
    prompts and padding.
    """
    head = model.get_output_embeddings()
    places = keep.bool()
    handle = head.register_forward_pre_hook(lambda module, given: (given[0][places].unsqueeze(0), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_input(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within it, what comes to the model's head is kept, and the head itself sees one token a row only."""
    kept: list[Tensor] = []

    def catch(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        kept.append(given[0])
        return (given[0][:, :1], *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        yield kept
    finally:
        handle.remove()
