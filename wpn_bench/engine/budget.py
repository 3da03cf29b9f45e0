"""How much goes into one pass: batches by tokens within a budget that is measured, halved when memory runs out.

    budget = Budget.measured(model)
    for_batches(order, tokens_of, budget, work)

`work` is given positions and must not keep anything of a batch that fails: the same positions come again, in smaller
batches, until all are done or one alone does not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wpn_bench.core import device_memory
from wpn_bench.engine.placement import device_of
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# On a processor a pass of this many tokens keeps the matrix products busy; more only pushes them out of the caches.
CPU_TOKENS = 1024
# Upper bound on an accelerator: beyond it a pass gains nothing and a failure loses much.
ACCELERATOR_TOKENS = 65_536
_SHARE = 0.5  # of the free memory; the rest is for fragmentation and for what others hold


class Budget:
    """`tokens` a pass may hold; `halve` after a failure. One object serves all batches of a job, so that what was learned
    stays learned."""

    def __init__(self, tokens: int) -> None:
        self.tokens = max(1, tokens)

    @classmethod
    def measured(cls, model: PreTrainedModel, *, logits: bool) -> Budget:
        """From the memory that is free now and what a token takes in this model, with or without the logits of all."""
        import torch

        config = model.config
        size = torch.finfo(model.dtype).bits // 8
        width = int(getattr(config, "hidden_size", 768))
        vocabulary = int(getattr(config, "vocab_size", 50_000))
        layers = int(getattr(config, "num_hidden_layers", 12))
        # Activations of one layer (the widest is the feed-forward's, about four widths; attention, residuals and
        # normalised copies another eight), keys and values of all layers, logits and their float32 log-softmax.
        a_token = size * width * (12 + 2 * layers) + logits * vocabulary * (size + 8)
        kind = device_of(model).type
        return cls(min(useful_tokens(kind), int(_SHARE * device_memory.free_memory(kind) / a_token)))

    def halve(self) -> None:
        self.tokens = max(1, self.tokens // 2)


def useful_tokens(device: str) -> int:
    """Tokens beyond which a pass gains nothing, whatever memory there is."""
    return CPU_TOKENS if device == "cpu" else ACCELERATOR_TOKENS


def for_batches(
    order: Sequence[int],
    tokens: Callable[[Sequence[int]], int],
    budget: Budget,
    work: Callable[[list[int]], None],
    most: int | None = None,
) -> None:
    """Call `work` on consecutive parts of `order`, each of at most `budget.tokens` by `tokens` and `most` positions; one
    position alone always goes. Memory that runs out halves the budget, and the part is cut anew.

    Raises `UserError` where a single position does not fit into memory.
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
            # Outside the handler: there the traceback still holds what did not fit.
            device_memory.release()


def does_not_fit() -> UserError:
    """What is raised when memory runs out over a single text."""
    return UserError(
        "the model and one text do not fit into memory",
        "take --dtype bfloat16, --offload disk, a smaller model or a GPU",
    )
