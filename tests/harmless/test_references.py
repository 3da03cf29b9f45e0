"""Which references calibrate the bounds: all short ones, few long ones, each for its group."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.harmless import references
from wpn_bench.harmless.judges import coherence
from wpn_bench.harmless.references import LEAST, PRECISION, Reference, choose, groups
from wpn_bench.models.sizes import SMALL

SIZES = st.lists(st.integers(0, 5000), max_size=400)


def pairs_of(sizes: Sequence[int]) -> list[tuple[str, str]]:
    return [(f"prompt {k}", "x" * size) for k, size in enumerate(sizes)]


@given(SIZES)
def test_each_reference_is_in_one_group_of_references_of_similar_length(sizes: list[int]) -> None:
    found = groups(sizes, 0.99)
    assert sorted(k for group in found for k in group) == list(range(len(sizes)))
    even = [min(max(size, 32), 1024) for size in sizes]
    for before, after in pairwise(found):
        assert max(even[k] for k in before) <= min(even[k] for k in after)
        assert len(before) <= len(after) + 1
    assert len(found) >= min(LEAST, len(sizes))


@given(SIZES)
def test_the_counts_are_those_of_the_groups(sizes: list[int]) -> None:
    chosen = choose(pairs_of(sizes), 1000, 0.99, SMALL)
    assert sum(one.count for one in chosen) == len(sizes)
    assert chosen == choose(pairs_of(sizes), 1000, 0.99, SMALL)
    positions = [int(one.prompt.removeprefix("prompt ")) for one in chosen]
    assert positions == sorted(set(positions))


def test_all_references_of_a_small_set_are_used() -> None:
    pairs = pairs_of(range(LEAST))
    assert choose(pairs, 500, 0.99, SMALL) == [Reference(*pair, 1) for pair in pairs]
    assert choose([], 500, 0.99, SMALL) == []


def test_a_small_model_uses_all_references() -> None:
    pairs = pairs_of([40] * 60 + [900] * 440)
    assert choose(pairs, 500, 0.99, SMALL - 1) == [Reference(*pair, 1) for pair in pairs]
    assert len(choose(pairs, 500, 0.99, SMALL)) < 250
    assert choose(pairs, 90, 0.99, 0) == [Reference(*pair, 1) for pair in pairs[::5]]


def test_a_large_set_is_thinned_first() -> None:
    pairs = pairs_of([50] * 1000)
    assert choose(pairs, 90, 0.99, SMALL) == [Reference(*pair, 1) for pair in pairs[::11]]


def test_most_short_references_are_used_and_long_ones_stand_for_many() -> None:
    chosen = choose(pairs_of([40] * 60 + [900] * 440), 500, 0.99, SMALL)
    short, long = ([one.count for one in chosen if len(one.text) == size] for size in (40, 900))
    assert len(short) > 0.5 * 60
    assert len(long) < 0.25 * 440
    assert set(sorted(long)[1:]) <= {10, 11}  # the last group may be incomplete


def test_equally_long_references_are_as_many_as_a_simple_sample_needs() -> None:
    """A share of 1 % has 1.9 standard errors of 1 point: 1.9 ** 2 * 0.01 * (1/n - 1/N) = 0.01 ** 2, for n of N references."""
    for quantile, rejected in ((0.99, 0.01), (0.95, 0.05)):
        needed = 1 / (0.01**2 / (1.9**2 * rejected) + 1 / 600)
        assert len(choose(pairs_of([300] * 600), 600, quantile, SMALL)) == pytest.approx(needed, abs=2)


def test_the_bound_is_precise_where_the_spread_of_a_loss_falls_with_the_length() -> None:
    """Losses of answers of 8 to 256 tokens, in ten sets. A simple sample of as many tokens has a larger error."""

    def changes(divided: Sequence[Sequence[int]]) -> list[float]:
        """Return how much the share that a bound accepts changes, in points, for each of 100 choices."""
        found = []
        for _ in range(100):
            drawn = [loss for group in divided for loss in [losses[draw(group)]] * len(group)]
            found.append(100 * float(np.mean(losses <= np.quantile(drawn, 0.99)) - full))
        return found

    draw = random.Random(0).choice
    ours: list[float] = []
    simple: list[float] = []
    for seed in range(10):
        numbers = np.random.default_rng(seed)
        tokens = numbers.lognormal(4.0, 0.7, 600).clip(8, 256)
        losses = 2.5 + numbers.normal(size=600) * 4 / np.sqrt(tokens)
        full = np.mean(losses <= np.quantile(losses, 0.99))
        divided = groups([int(4.3 * n) for n in tokens], 0.99)
        ours += changes(divided)
        share = sum(tokens[group].mean() for group in divided) / tokens.sum()
        assert share < 0.2
        simple += changes(np.array_split(numbers.permutation(600), round(600 * share)))
    assert np.mean(np.abs(ours) <= 100 * PRECISION + 1e-9) >= 0.95
    assert np.std(simple) > 1.5 * np.std(ours)


def test_the_size_of_a_local_model_is_known(small_opt: Path) -> None:
    model = LocalBackend.open(small_opt)
    assert model.parameters() == model.model.num_parameters()


def test_a_likelihood_counts_as_often_as_its_reference(small_opt: Path) -> None:
    model = LocalBackend.open(small_opt)
    sides = [
        [Reference("Q:", "a goose", 2), Reference("Q:", "the baker is kind", 1)],
        [Reference("Q: b", "a goose", 3)],
    ]
    done: list[int] = []
    found = references.likelihoods(model, sides, done.append)
    alone = coherence.likelihoods(model, ["a goose", "the baker is kind", "a goose"], after=["Q:", "Q:", "Q: b"])
    assert [one.tokens for side in found for one in side] == [alone[k].tokens for k in (0, 0, 1, 2, 2, 2)]
    assert [one.loss for side in found for one in side] == pytest.approx([alone[k].loss for k in (0, 0, 1, 2, 2, 2)])
    assert [len(side) for side in found] == [3, 3]
    assert sum(done) == 3
