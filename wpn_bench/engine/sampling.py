"""How the decoding loop chooses tokens, and when a row ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Ended = Callable[[int, list[int]], None]  # is called with the position of a prompt and all its new tokens


@dataclass(frozen=True)
class Sampling:
    """Sample tokens instead of decoding greedily.

    Each row has its own random generator, seeded with `seed` and the tokens of the prompt. So equal prompts get equal
    texts, unless they are `independent`.

    Attributes:
        temperature: Divides the logits.
        top_p: Tokens are sampled from the most likely ones that together have this probability; None means all tokens.
        seed: Seed of the run.
        independent: Whether the generator is also seeded with the number of equal prompts before this one.
    """

    temperature: float
    top_p: float | None = None
    seed: int = 0
    independent: bool = False


@dataclass(frozen=True)
class Rules:
    """How tokens are chosen, and when a row ends.

    Attributes:
        max_new_tokens: Maximum number of new tokens.
        ends: Ids of tokens that end a row. They are not part of the result.
        stopped: Returns whether a row with these new tokens ends. The tokens are part of the result.
        sampling: How tokens are sampled; None means greedy decoding.
    """

    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] = lambda tokens: False
    sampling: Sampling | None = None


def seed_of(seed: int, prompt: Sequence[int], stream: int = 0) -> int:
    """Return the seed for sampling after a prompt. It does not depend on the other prompts of the batch.

    Args:
        seed: Seed of the run.
        prompt: Token ids of the prompt.
        stream: Number of the sample after this prompt.

    Returns:
        An integer of 63 bits.
    """
    told = hashlib.sha256(f"{seed}:{','.join(map(str, prompt))}{f'#{stream}' if stream else ''}".encode()).digest()
    return int.from_bytes(told[:8], "big") >> 1


def drawn(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """Sample one token per row by inversion of the cumulative distribution.

    The token is the first one, in the order of the vocabulary, at which the cumulative probability exceeds the row's
    number. Tokens are not ordered by probability, because rounding errors could change that order.

    Args:
        logits: Logits (R, V).
        draws: A number in [0, 1) for each row (R,).
        sampling: Temperature and top_p.

    Returns:
        The tokens (R,).
    """
    p = logits.double()
    if sampling.temperature != 1:
        p = p / sampling.temperature
    p = p.softmax(-1)
    if sampling.top_p is not None:
        ranked, order = p.sort(-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= sampling.top_p  # the most likely token is always kept
        p = p.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
    sums = p.cumsum(-1)
    aims = draws.to(p.device).unsqueeze(1) * sums[:, -1:]
    picked = torch.searchsorted(sums, aims, right=True).squeeze(-1)
    if bool((picked == p.shape[-1]).any()):
        # Because of rounding, no cumulative probability may exceed the number. Then take the last possible token.
        picked = torch.minimum(picked, p.shape[-1] - 1 - (p > 0).flip(-1).long().argmax(-1))
    return picked
