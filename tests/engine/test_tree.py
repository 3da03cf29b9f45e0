"""Trees and rows: every sequence is a path, sees its own beginning only, and no token is lost in packing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.engine.tree import pack, rows, trees

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=20, unique=True
)


@given(sequences=SEQUENCES, size=st.integers(1, 20))
def test_every_sequence_is_a_path_that_sees_itself_only(sequences: list[tuple[int, ...]], size: int) -> None:
    forest = trees(sequences, size, 2 * size)
    assert sorted(n for tree in forest for n in tree.paths) == list(range(len(sequences)))
    for tree in forest:
        seen = tree.visible()
        assert len(tree) <= max(2 * size, max(len(sequences[n]) for n in tree.paths))
        assert sum(end - first for first, end, _ in tree.branches) == len(tree)
        for number, path in tree.paths.items():
            assert tuple(tree.tokens[k] for k in path) == sequences[number]
            assert [tree.positions[k] for k in path] == list(range(len(path)))
            for depth, node in enumerate(path):
                assert list(np.flatnonzero(seen[node])) == sorted(path[: depth + 1])


def test_a_shared_beginning_stands_once() -> None:
    context = tuple(range(10))
    (tree,) = trees([(*context, 10 + k, 20) for k in range(4)], 64, 64)
    assert len(tree) == 10 + 4 * 2
    # A sequence that another one begins with costs nothing.
    (tree,) = trees([context, context[:4]], 64, 64)
    assert len(tree) == 10


def test_a_long_context_is_not_repeated_for_short_rows() -> None:
    context = tuple(range(100))
    sequences = [(*context, 200 + k, 300) for k in range(3)]
    assert [len(t) for t in trees(sequences, 64, 128)] == [106]
    assert [len(t) for t in trees(sequences, 64, 104)] == [104, 102]


@given(lengths=st.lists(st.integers(1, 30), max_size=50), size=st.integers(1, 24))
def test_rows_hold_everything_once(lengths: list[int], size: int) -> None:
    filled = rows(lengths, size)
    assert sorted(k for row in filled for k in row) == list(range(len(lengths)))
    sums = [sum(lengths[k] for k in row) for row in filled]
    assert all(s <= size or len(row) == 1 for s, row in zip(sums, filled, strict=True))
    assert sums == sorted(sums, reverse=True)


@given(sequences=SEQUENCES)
def test_packing_keeps_trees_apart(sequences: list[tuple[int, ...]]) -> None:
    forest = trees(sequences, 8, 12)
    filled = rows(map(len, forest), 24)
    batch = pack([[forest[k] for k in row] for row in filled])
    alone = all(len(row) == 1 for row in filled) and all(len(tree.branches) == 1 for tree in forest)
    assert (batch.visible is None) == alone
    if batch.visible is not None:
        assert batch.visible.any(-1).all()  # a softmax over nothing would be NaN
    found = {}
    for tree, row, at in batch.places:
        inside = np.zeros(batch.tokens.shape[1], dtype=bool)
        inside[at : at + len(tree)] = True
        if batch.visible is not None:
            assert not batch.visible[row][inside][:, ~inside].any()
        for number, path in tree.paths.items():
            found[number] = tuple(batch.tokens[row, path + at])
    assert found == dict(enumerate(sequences))
