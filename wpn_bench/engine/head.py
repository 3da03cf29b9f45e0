"""The output head, only where its logits are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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
