"""Batches by tokens: as many as fit into the free memory, and half as many after memory ran out.

    budget = Budget.measured(model)
    for_batches(order, tokens_of, budget, work)

`work` gets positions. It must keep nothing of a batch that fails: the same positions come again in smaller batches, until all
are done or a single one does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wpn_bench.core import device_memory
from wpn_bench.engine.placement import device_of
from wpn_bench.errors import UserError
from wpn_bench.models.sizes import TokenMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# On a CPU, a pass of this many tokens keeps the matrix products busy; more tokens only miss the caches.
CPU_TOKENS = 1024
# Upper bound on an accelerator: more tokens are no faster, and a failed pass costs more.
ACCELERATOR_TOKENS = 65_536
_MEMORY_SHARE = 0.5  # of the free memory; the rest is for fragmentation and for other processes


class Budget:
    """How many `tokens` one pass may hold; `halve` it after a failure. One object serves all batches of a job, so that a
    halved budget stays halved."""

    def __init__(self, tokens: int) -> None:
        self.tokens = max(1, tokens)

    @classmethod
    def measured(cls, model: PreTrainedModel, *, logits: bool) -> Budget:
        """As many tokens as fit into half of the memory that is free now, and no more than are useful.

        Args:
            model: The model of the passes.
            logits: Whether a pass computes the logits of all its tokens.
        """
        token = TokenMemory.of(model.config, model.dtype)
        bytes_per_token = token.forward + logits * token.logits
        device = device_of(model).type
        return cls(min(useful_tokens(device), int(_MEMORY_SHARE * device_memory.free_memory(device) / bytes_per_token)))

    def halve(self) -> None:
        self.tokens = max(1, self.tokens // 2)


def useful_tokens(device: str) -> int:
    """How many tokens of a pass are useful; with more it is no faster, whatever memory there is."""
    return CPU_TOKENS if device == "cpu" else ACCELERATOR_TOKENS


def for_batches(
    order: Sequence[int],
    tokens: Callable[[Sequence[int]], int],
    budget: Budget,
    work: Callable[[list[int]], None],
    most: int | None = None,
) -> None:
    """Call `work` on consecutive parts of `order`. When memory runs out, the budget is halved and the part is cut again.

    Args:
        order: Positions, in the order in which they are done.
        tokens: The number of tokens of a pass over some positions.
        budget: The tokens of a pass; a single position is passed on whatever its tokens.
        work: Does some positions.
        most: How many positions go into one pass at most.

    Raises:
        UserError: A single position does not fit into memory.
    """
    at = 0
    while at < len(order):
        end = at + 1
        while end < len(order) and (most is None or end - at < most) and tokens(order[at : end + 1]) <= budget.tokens:
            end += 1
        part = list(order[at:end])
        try:
            work(part)
        except Exception as e:
            if not device_memory.ran_out_of_memory(e):
                raise
            if len(part) == 1:
                raise does_not_fit() from e
            budget.tokens = min(budget.tokens, max(tokens(part), 1))
            budget.halve()
            failed = True
        else:
            failed = False
            at = end
        if failed:
            # Not in the handler: there the traceback still holds the tensors that did not fit.
            device_memory.release()


def does_not_fit() -> UserError:
    """The error for a single text that does not fit into memory."""
    return UserError(
        "the model and one text do not fit into memory",
        "take --dtype bfloat16, --offload disk, a smaller model or a GPU",
    )
