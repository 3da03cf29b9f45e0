"""Batches within a budget: nothing lost, nothing twice, smaller after memory ran out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wpn_bench.core.device_memory import ran_out_of_memory
from wpn_bench.engine.budget import Budget, for_batches
from wpn_bench.errors import UserError


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60),
    tokens=st.integers(1, 100),
    failing=st.sets(st.integers(0, 30), max_size=6),
)
@pytest.mark.slow
def test_every_item_once_whatever_fails(lengths: list[int], tokens: int, failing: set[int]) -> None:
    done: list[int] = []
    calls = 0

    def work(part: list[int]) -> None:
        nonlocal calls
        calls += 1
        if calls in failing and len(part) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert len(part) == 1 or sum(lengths[k] for k in part) <= tokens
        done.extend(part)

    for_batches(range(len(lengths)), lambda part: sum(lengths[k] for k in part), Budget(tokens), work)
    assert done == list(range(len(lengths)))


def test_the_budget_stays_halved() -> None:
    sizes: list[int] = []

    def work(part: list[int]) -> None:
        sizes.append(len(part))
        if len(part) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    budget = Budget(8)
    for_batches(range(8), len, budget, work)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert budget.tokens == 2


def test_one_that_does_not_fit_alone_is_said() -> None:
    def work(part: list[int]) -> None:
        raise MemoryError

    with pytest.raises(UserError, match="do not fit into memory"):
        for_batches(range(3), len, Budget(2), work)


def test_other_errors_are_not_swallowed() -> None:
    def work(part: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        for_batches(range(3), len, Budget(2), work)
    assert not ran_out_of_memory(ValueError("out of memory"))
