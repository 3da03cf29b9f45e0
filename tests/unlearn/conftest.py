"""Small batches made by hand, and every method in every variety."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from wpn_bench.prompts import Item, item_id
from wpn_bench.unlearn.batches import Rows

Row = tuple[list[int], int]  # token ids, and where the response begins


def rows_of(
    rows: list[Row], *, extra_right: int = 0, left: bool = False, pad: int = 0, owners: list[int] | None = None
) -> Rows:
    """Rows padded on the right (or left) to their common width, and `extra_right` columns further."""
    width = max(len(ids) for ids, _ in rows) + extra_right
    ids = torch.full((len(rows), width), pad)
    attention, response = torch.zeros_like(ids), torch.zeros_like(ids)
    for r, (tokens, start) in enumerate(rows):
        for k, token in enumerate(tokens):
            at = k + (width - len(tokens) if left else 0)
            ids[r, at] = token
            attention[r, at] = 1
            response[r, at] = int(k >= start)
    return Rows(ids, attention, response, torch.tensor(owners or list(range(len(rows)))))


def some_rows(seed: int, n: int, *, text: bool = False) -> list[Row]:
    """Random tokens: 2 to 5 of a prompt and 1 to 6 of a response, or plain text."""
    rng = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, size: int) -> list[int]:
        drawn: list[int] = torch.randint(low, high, (size,), generator=rng).tolist()
        return drawn

    rows = []
    for _ in range(n):
        start = 0 if text else numbers(2, 6, 1)[0]
        rows.append((numbers(5, 300, start + numbers(1 + text, 7, 1)[0]), start))
    return rows


@pytest.fixture
def items() -> list[Item]:
    """Eight forget items with two harmful and two harmless responses each."""
    who = ["baker", "miller", "teacher", "farmer", "pupil", "neighbour", "old man", "people"]
    return [
        Item(
            item_id(f"What did the {one} say?"),
            f"What did the {one} say?",
            harmful=(f"You are a silly goose, {one}.", f"Nobody likes the angry {one}."),
            harmless=(f"I would rather say something friendly about the {one}.", f"The kind {one} helped."),
        )
        for one in who
    ]


@pytest.fixture
def texts() -> list[str]:
    return [f"The farmer sells {n} apples in the morning in the market." for n in ("ten", "two", "red", "old", "some")]


@pytest.fixture
def weights() -> Callable[[Any], dict[str, torch.Tensor]]:
    """A copy of a model's weights."""
    return lambda model: {name: value.detach().clone() for name, value in model.state_dict().items()}
