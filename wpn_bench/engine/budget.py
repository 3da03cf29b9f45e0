"""Process items in batches with a limited number of tokens.

The limit is the number of tokens that fit into the free memory. It is halved each time memory runs out.

    budget = Budget.measured(model, logits=False)
    for_batches(order, tokens_of, budget, work)

`work` is called with positions of items. If memory runs out in a batch, its positions come again in smaller batches, so
`work` must keep no results of a failed batch. If a single item does not fit, this is an error.
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


# On a CPU, matrix products are efficient in a pass of this many tokens. More tokens only cause cache misses.
CPU_TOKENS = 1024
# Largest number of tokens in a pass on an accelerator. More tokens are not faster, and a failed pass costs more.
ACCELERATOR_TOKENS = 65_536
_MEMORY_SHARE = 0.5  # share of the free memory that is used; the rest is left for fragmentation and other processes


class Budget:
    """The maximum number of tokens in a pass.

    Use one object for all batches of a job, so that the limit stays halved after memory ran out.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = max(1, tokens)

    @classmethod
    def measured(cls, model: PreTrainedModel, *, logits: bool) -> Budget:
        """Return a budget that uses half of the free memory, but not more tokens than are useful.

        Args:
            model: The model of the passes.
            logits: Whether a pass computes the logits of all its tokens.

        Returns:
            The budget.
        """
        token = TokenMemory.of(model.config, model.dtype)
        bytes_per_token = token.forward + logits * token.logits
        device = device_of(model).type
        return cls(min(useful_tokens(device), int(_MEMORY_SHARE * device_memory.free_memory(device) / bytes_per_token)))

    def halve(self) -> None:
        self.tokens = max(1, self.tokens // 2)


def useful_tokens(device: str) -> int:
    """Return the number of tokens above which a pass on this device does not become more efficient."""
    return CPU_TOKENS if device == "cpu" else ACCELERATOR_TOKENS


def for_batches(
    order: Sequence[int],
    tokens: Callable[[Sequence[int]], int],
    budget: Budget,
    work: Callable[[list[int]], None],
    most: int | None = None,
) -> None:
    """Call `work` on consecutive parts of `order`, each within the budget.

    When memory runs out, the budget is halved and the part is split again.

    Args:
        order: Positions of the items, in the order in which they are processed.
        tokens: Returns the number of tokens in a pass over some positions.
        budget: Maximum number of tokens in a pass. A single item may exceed it.
        work: Processes the items at some positions.
        most: Maximum number of items in a pass; None means no limit.

    Raises:
        UserError: A single item does not fit into memory.
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
            # Within the except block, the traceback would still refer to the tensors that did not fit.
            device_memory.release()


def does_not_fit() -> UserError:
    """Return the error for a single text that does not fit into memory."""
    return UserError(
        "the model and one text do not fit into memory",
        "use --dtype bfloat16, --offload disk, a smaller model or a GPU",
    )
