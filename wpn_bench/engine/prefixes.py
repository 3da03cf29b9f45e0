"""Find groups of token sequences with a common prefix, so that each prefix is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wpn_bench.engine.tree import common_length

TOKENS = 16  # minimum length of a prefix; for a shorter one, storing it costs more than computing it again
MEMBERS = 4  # minimum number of sequences in a group
_LEVELS = 256  # number of different prefix lengths that nested groups can have, which limits the depth of the search


@dataclass(frozen=True)
class Group:
    """Sequences with a common prefix.

    Attributes:
        length: Number of common tokens. Each sequence has at least one token more.
        members: Positions of the sequences.
    """

    length: int
    members: tuple[int, ...]


def shared_prefixes(sequences: Sequence[list[int]], tokens: int = TOKENS, members: int = MEMBERS) -> list[Group]:
    """Find disjoint groups of sequences with a common prefix that save as many tokens as possible.

    In lexicographic order, sequences with a common prefix are adjacent. A run of adjacent sequences shares the common
    prefix of its first and its last sequence. A run becomes one group, or it is split where two neighbours have the
    shortest common prefix, whichever saves more tokens.

    Args:
        sequences: Token ids.
        tokens: Minimum length of a prefix.
        members: Minimum number of sequences in a group.

    Returns:
        The groups.
    """
    order = sorted(range(len(sequences)), key=lambda k: sequences[k])
    common = [common_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
    grain = max(tokens, max((len(s) for s in sequences), default=0) // _LEVELS)

    def best(begin: int, end: int) -> tuple[int, list[Group]]:
        if end - begin < members:
            return 0, []
        least = min(common[begin : end - 1])
        # The last token of a sequence is not shared, because its logits are needed.
        length = min(least, min(len(sequences[k]) for k in order[begin:end]) - 1)
        whole = (end - begin - 1) * length if length >= tokens else 0
        cuts = [k + 1 for k in range(begin, end - 1) if common[k] // grain == least // grain]
        parts = [best(a, b) for a, b in pairwise([begin, *cuts, end])]
        if whole >= sum(saved for saved, _ in parts):
            return whole, [Group(length, tuple(order[begin:end]))] if whole else []
        return sum(saved for saved, _ in parts), [group for _, groups in parts for group in groups]

    return best(0, len(order))[1]
