"""Prefix trees of token sequences, which are packed into rows without padding.

The log-likelihood of a token depends only on the tokens before it, so the context of several choices is computed once.
A row contains `context choice1 choice2 ...`. Each token attends only to its ancestors in the tree, and its position is
its depth. A row contains as many trees as fit. This module works on numpy arrays and does not depend on models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Tokens = tuple[int, ...]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Tree:
    """A prefix tree. Each node is a token and comes after its parent.

    Attributes:
        tokens: Token id of each node.
        positions: Depth of each node.
        branches: Runs of nodes without a fork, as (first node, end, parent of the first node or -1).
        paths: The nodes of each sequence, by the number of the sequence.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, int]] = field(default_factory=list)
    paths: dict[int, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def visible(self) -> Array:
        """Return the attention mask (n, n).

        It is true if the column's node is the row's node or one of its ancestors.
        """
        n = len(self)
        seen = np.zeros((n, n), dtype=bool)
        for first, end, parent in self.branches:
            if parent >= 0:
                seen[first:end] = seen[parent]
            seen[first:end, first:end] = np.tri(end - first, dtype=bool)
        return seen


def trees(sequences: Sequence[Tokens], size: int, most: int) -> list[Tree]:
    """Combine sequences into trees, in which each sequence is a path.

    Args:
        sequences: Distinct sequences that are not empty. The position of a sequence is its key in `paths`.
        size: Maximum number of nodes in a tree of several sequences.
        most: Maximum number of nodes if the next sequence shares at least half of its tokens with the tree. Such trees
            may be larger, because computing a long context again would cost more than a long row.

    Returns:
        The trees.
    """
    made: list[Tree] = []
    before: Tokens = ()
    path = np.empty(0, dtype=np.int64)
    # In lexicographic order, a sequence has the longest common prefix with its neighbours.
    for number in sorted(range(len(sequences)), key=sequences.__getitem__):
        tokens = sequences[number]
        shared = common_length(before, tokens)
        grown = len(made[-1]) + len(tokens) - shared if made else 0
        if not shared or grown > (most if 2 * shared >= len(tokens) else size):
            made.append(Tree())
            shared = 0
        tree = made[-1]
        first, end = len(tree), len(tree) + len(tokens) - shared
        if end > first:
            tree.branches.append((first, end, int(path[shared - 1]) if shared else -1))
            tree.tokens += tokens[shared:]
            tree.positions += range(shared, len(tokens))
        path = np.concatenate([path[:shared], np.arange(first, end)])
        tree.paths[number] = path
        before = tokens
    return made


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences.

    Args:
        a: A list or tuple of token ids.
        b: Another sequence of the same type.

    Returns:
        The number of tokens.
    """
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    low, high = 0, most  # invariant: the first `low` tokens are equal, and the first `high` tokens are not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def rows(lengths: Iterable[int], size: int) -> list[list[int]]:
    """Pack items into rows by best fit decreasing: the longest item first, into the fullest row with enough room.

    Args:
        lengths: Length of each item.
        size: Maximum sum of lengths in a row.

    Returns:
        The positions of the items in each row, with the fullest row first. An item longer than `size` has its own row.
    """
    of = list(lengths)
    filled: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]  # rows, indexed by their remaining room
    for k in sorted(range(len(of)), key=lambda k: (-of[k], k)):
        room = next((r for r in range(of[k], size + 1) if with_room[r]), None)
        if room is None:
            filled.append([k])
            left, row = size - of[k], len(filled) - 1
        else:
            row = with_room[room].pop()
            filled[row].append(k)
            left = room - of[k]
        if left > 0:
            with_room[left].append(row)
    return sorted(filled, key=lambda row: -sum(of[k] for k in row))


@dataclass
class Packed:
    """A batch of rows of trees.

    Attributes:
        tokens: Token ids (rows, width).
        positions: Position of each token (rows, width).
        visible: Attention mask (rows, width, width). None if each row is one sequence, because the model's own causal
            mask is then equal and cheaper.
        places: For each tree, the tree, its row and its first column.
    """

    tokens: Array
    positions: Array
    visible: Array | None
    places: list[tuple[Tree, int, int]]


def pack(of_rows: Sequence[Sequence[Tree]]) -> Packed:
    """Convert rows of trees to arrays, padded on the right with token 0, which attends only to itself."""
    width = max(sum(map(len, row)) for row in of_rows)
    tokens = np.zeros((len(of_rows), width), dtype=np.int64)
    positions = np.zeros_like(tokens)
    plain = all(len(row) == 1 and len(row[0].branches) == 1 for row in of_rows)
    visible = None if plain else np.zeros((len(of_rows), width, width), dtype=bool)
    places = []
    for r, row in enumerate(of_rows):
        at = 0
        for tree in row:
            end = at + len(tree)
            tokens[r, at:end] = tree.tokens
            positions[r, at:end] = tree.positions
            if visible is not None:
                visible[r, at:end, at:end] = tree.visible()
            places.append((tree, r, at))
            at = end
        if visible is not None:
            rest = np.arange(at, width)
            visible[r, rest, rest] = True
    return Packed(tokens, positions, visible, places)
