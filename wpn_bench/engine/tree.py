"""Sequences of tokens as trees: what several begin with stands once, and whole trees share a row without padding.

The log-likelihood of a token depends on the tokens before it and on nothing else, so of two choices after one context the
context is computed once: a row holds `context choice1 choice2 ...`, every token sees its own ancestors only, and its
position is its depth. Rows are filled with as many trees as fit. Nothing here knows a model; all arrays are numpy.
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
    """Nodes in an order in which every parent stands before its children.

    `branches` are runs of nodes (first, end, parent of the first; -1: none). `paths`: for every sequence, the nodes of
    its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, int]] = field(default_factory=list)
    paths: dict[int, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def visible(self) -> Array:
        """(n, n), true where the node of the row sees the node of the column: its ancestors and itself."""
        n = len(self)
        seen = np.zeros((n, n), dtype=bool)
        for first, end, parent in self.branches:
            if parent >= 0:
                seen[first:end] = seen[parent]
            seen[first:end, first:end] = np.tri(end - first, dtype=bool)
        return seen


def trees(sequences: Sequence[Tokens], size: int, most: int) -> list[Tree]:
    """Every one of `sequences` (distinct, not empty) as a path in one of the trees; its number is its key in `paths`.

    A tree of several sequences has at most `size` nodes, or `most` where a sequence shares at least half of its tokens:
    a long context is not computed again for the sake of short rows.
    """
    made: list[Tree] = []
    before: Tokens = ()
    path = np.empty(0, dtype=np.int64)
    # In alphabetical order a sequence shares most with its neighbours.
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
    """How many tokens both begin with; `a` and `b` are of one kind, lists or tuples."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    low, high = 0, most  # the first `low` are equal, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def rows(lengths: Iterable[int], size: int) -> list[list[int]]:
    """Positions of `lengths` together in rows of at most `size` (a longer one has a row of its own), fullest first.

    Best fit, longest first: the row with the least room that still suffices.
    """
    of = list(lengths)
    filled: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]  # by what is left, rows
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
    """A batch: `tokens` and `positions` (rows, width), `visible` (rows, width, width), and where each tree stands.

    `visible` is None where every row is one sequence: then a causal model's own mask says the same, and costs less.
    """

    tokens: Array
    positions: Array
    visible: Array | None
    places: list[tuple[Tree, int, int]]  # tree, its row, its first column


def pack(of_rows: Sequence[Sequence[Tree]]) -> Packed:
    """Rows of trees as arrays, filled up on the right with token 0, which sees itself and is seen by nobody."""
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
