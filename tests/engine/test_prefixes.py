"""Groups with a common beginning: what is shared is shared, and what is worth sharing is found."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from wpn_bench.engine.prefixes import Group, shared_prefixes


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=30), st.integers(1, 4), st.integers(2, 4))
def test_members_share_what_is_said(sequences: list[list[int]], tokens: int, members: int) -> None:
    groups = shared_prefixes(sequences, tokens, members)
    seen = [k for group in groups for k in group.members]
    assert len(seen) == len(set(seen))
    for group in groups:
        assert group.length >= tokens
        assert len(group.members) >= members
        assert len({tuple(sequences[k][: group.length]) for k in group.members}) == 1
        assert all(len(sequences[k]) > group.length for k in group.members)


def test_templates_are_told_apart() -> None:
    """Two templates that begin alike, and prompts of neither."""
    one, other = [7] * 10 + [1] * 40, [7] * 10 + [2] * 30
    sequences = [[9, 9], *[[*one, k] for k in range(5)], [8], *[[*other, k, k] for k in range(4)]]
    groups = shared_prefixes(sequences, 8, 4)
    assert {(g.length, frozenset(g.members)) for g in groups} == {
        (50, frozenset(range(1, 6))),
        (40, frozenset(range(7, 11))),
    }


def test_a_short_beginning_of_many_beats_a_long_one_of_few() -> None:
    sequences = [[*range(20), 100 + k] for k in range(20)] + [[*range(20), 50, 51, 52, k] for k in range(4)]
    assert shared_prefixes(sequences) == [Group(20, tuple(sorted(range(24), key=lambda k: sequences[k])))]


def test_nothing_to_share() -> None:
    assert shared_prefixes([]) == []
    assert shared_prefixes([[1, 2, 3]] * 3) == []
    assert shared_prefixes([[k] * 40 for k in range(10)]) == []
    nested = [[0] * n for n in range(1, 1500, 5)]  # each the beginning of the next: deep, and no recursion error
    assert shared_prefixes(nested)
