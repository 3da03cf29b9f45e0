"""Pooling over tokens, and the n-pair loss."""

from __future__ import annotations

import math

import pytest
import torch

from wpn_bench.unlearn.methods.wpn import n_pair, pool


def test_pool_by_hand() -> None:
    values = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 1, 0]])
    assert pool(values, mask, "position").tolist() == [pytest.approx((1 * 1 + 2 * 2 + 3 * 4) / 6)]
    assert pool(values, mask, "mean").tolist() == [pytest.approx(7 / 3)]
    assert pool(values, mask, "last").tolist() == [4.0]
    assert pool(values, mask, "early", 1.0).tolist() == [pytest.approx((4 * 1 + 2 * 2 + 1 * 4) / 7)]
    states = torch.stack([values, -values], dim=-1)
    assert pool(states, mask, "position").tolist() == [[pytest.approx(17 / 6), pytest.approx(-17 / 6)]]


@pytest.mark.parametrize("how", ["position", "mean", "early", "last"])
def test_pool_at_the_edges(how: str) -> None:
    values = torch.tensor([[3.0, 5.0, 7.0], [3.0, 5.0, 7.0]])
    mask = torch.tensor([[0, 0, 0], [0, 1, 0]])
    assert pool(values, mask, how).tolist() == [0.0, 5.0]  # type: ignore[arg-type]
    longer = torch.cat([values, torch.full((2, 3), math.pi)], dim=1)
    assert torch.equal(pool(longer, torch.nn.functional.pad(mask, (0, 3)), how), pool(values, mask, how))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["position", "mean", "early", "last"])
def test_the_gradient_of_pool(how: str) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    for shape in ((2, 4), (2, 4, 3)):
        values = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: pool(v, mask, how), (values,))  # type: ignore[arg-type]


def test_n_pair_by_hand() -> None:
    positive, negatives = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    one = math.log(1 + math.exp(0 - 1) + math.exp(2 - 1))
    other = math.log(1 + 1 + 1)
    assert float(n_pair(positive, negatives)) == pytest.approx((one + other) / 2)


def test_n_pair_neither_overflows_nor_vanishes() -> None:
    assert float(n_pair(torch.tensor([-1e4]), torch.tensor([[1e4]]))) == pytest.approx(2e4)
    assert float(n_pair(torch.tensor([1e4]), torch.tensor([[-1e4]]))) == 0.0


def test_the_gradient_of_n_pair() -> None:
    torch.manual_seed(0)
    positive = torch.randn(3, dtype=torch.float64, requires_grad=True)
    negatives = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(n_pair, (positive, negatives))
