"""Every loss against one written again, row by row, in float64 and without padding; gradients against differences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wpn_bench import models
from wpn_bench.unlearn.batches import Batch
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.wpn import n_pair, pool

from .conftest import Row, rows_of, some_rows

VARIETIES: list[tuple[str, dict[str, Any]]] = [
    ("ga", {}),
    ("ga_answer", {}),
    ("sft", {}),
    ("sft", {"kl": 0.7}),
    ("wpn", {}),
    ("wpn", {"kl": 0.0, "anchor": 0.0, "pooling": "position"}),
    ("wpn", {"pooling": "mean", "temperature": 0.5}),
    ("wpn", {"pooling": "last", "anchor": 0.2}),
    ("wpn", {"space": "hidden", "pooling": "position", "kl": 0.0, "anchor": 0.0, "temperature": 0.1}),
    ("wpn", {"space": "hidden", "pooling": "mean"}),
    ("wpn", {"space": "hidden", "pooling": "last", "n": 2}),
    ("wpn", {"n": 5, "kl": 2.0}),
]
NAMES = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in VARIETIES]


class Case:
    """One method with a batch, and the models it reads."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any]) -> None:
        kind = METHODS.get(name)
        self.method = kind(kind.Config(**options))
        self.model = models.load_fresh(folder).double().eval()
        torch.manual_seed(3)
        self.reference = models.load_fresh(folder).double().eval()
        with torch.no_grad():
            for p in self.reference.parameters():
                p.add_(0.02 * torch.randn_like(p))
        self.pad = int(models.load_tokenizer(folder).pad_token_id)
        self.harmless = some_rows(1, 3)
        # A prompt's rows share the prompt, as they do in training.
        self.harmful = [
            (row[0][: row[1]] + other[0][other[1] :], row[1])
            for k, row in enumerate(self.harmless)
            for other in some_rows(10 + k, self.method.negatives)
        ]
        self.retain = some_rows(2, 4, text=True)

    def loss(self, order: tuple[int, ...] = (0, 1, 2), **padding: int) -> torch.Tensor:
        n = self.method.negatives
        harmful = [self.harmful[n * k + j] for k in order for j in range(n)]
        owners = [k for k in range(3) for _ in range(n)]
        batch = Batch(
            rows_of([self.harmless[k] for k in order], pad=self.pad, **padding),
            rows_of(harmful, pad=self.pad, owners=owners, **padding),
            rows_of(self.retain if order[0] == 0 else self.retain[::-1], pad=self.pad, **padding),
        )
        return self.method.loss(self.model, batch, self.reference).total

    def value(self, **how: Any) -> float:
        return float(self.loss(**how).detach())


@pytest.fixture(params=VARIETIES, ids=NAMES)
def case(request: pytest.FixtureRequest, small_lm: Path) -> Case:
    return Case(small_lm, *request.param)


# --- the formulas again ----------------------------------------------------------------------------------------------


def forward(model: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(log p of every token at every place, last hidden states) of one row alone, without padding."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    logits = out.logits[0].numpy().astype(np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)), out.hidden_states[-1][0].numpy()


def response_logps(model: Any, row: Row) -> list[float]:
    """log p(y_t | x, y_<t) of the response's tokens."""
    ids, start = row
    logp, _ = forward(model, ids)
    return [float(logp[t - 1, ids[t]]) for t in range(max(start, 1), len(ids))]


def pooled(values: list[Any], how: str) -> Any:
    if how == "last":
        return values[-1]
    weights = range(1, len(values) + 1) if how == "position" else [1] * len(values)
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def score(model: Any, row: Row, config: Any) -> float:
    ids, start = row
    if config.space == "output":
        return float(pooled(response_logps(model, row), config.pooling)) / config.temperature
    _, hidden = forward(model, ids)
    a, b = pooled(list(hidden[:start]), config.pooling), pooled(list(hidden[start:]), config.pooling)
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)) / config.temperature


def kl(model: Any, reference: Any, rows: list[Row]) -> float:
    """Mean over all predicted tokens of sum_v p_ref(v) (log p_ref(v) - log p(v))."""
    terms: list[float] = []
    for ids, _ in rows:
        q, p = forward(model, ids)[0], forward(reference, ids)[0]
        terms += [float((np.exp(p[t]) * (p[t] - q[t])).sum()) for t in range(len(ids) - 1)]
    return sum(terms) / len(terms)


def mean_logp(model: Any, rows: list[Row]) -> float:
    each = [v for row in rows for v in response_logps(model, row)]
    return sum(each) / len(each)


def expected(case: Case) -> float:
    config: Any = case.method.config
    model = case.model
    if case.method.name == "ga":
        return mean_logp(model, [(ids, 0) for ids, _ in case.harmful])
    if case.method.name == "ga_answer":
        return mean_logp(model, case.harmful)
    regularised = config.kl * kl(model, case.reference, case.retain) if config.kl else 0.0
    if case.method.name == "sft":
        return -mean_logp(model, case.harmless) + regularised
    contrast = []
    for k, row in enumerate(case.harmless):
        positive = score(model, row, config)
        mine = case.harmful[k * (config.n - 1) : (k + 1) * (config.n - 1)]
        contrast.append(math.log(1 + sum(math.exp(score(model, r, config) - positive) for r in mine)))
    return sum(contrast) / len(contrast) - config.anchor * mean_logp(model, case.harmless) + regularised


def test_the_loss_is_its_formula(case: Case) -> None:
    assert case.value() == pytest.approx(expected(case), rel=2e-5, abs=2e-5)


def test_the_gradient_is_that_of_the_loss(case: Case) -> None:
    """Along the gradient itself and along three random directions: (L(w + e d) - L(w - e d)) / 2e.

    The losses work in float32 whatever the model, which is what limits the steps and the tolerance.
    """
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(case.loss(), parameters, allow_unused=True)
    slopes = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    size = math.sqrt(sum(float((g**2).sum()) for g in slopes))
    assert size > 1e-3
    torch.manual_seed(0)
    directions = [[g / size for g in slopes]]
    for _ in range(3):
        drawn = [torch.randn_like(p) for p in parameters]
        norm = math.sqrt(sum(float((d**2).sum()) for d in drawn))
        directions.append([d / norm for d in drawn])
    step = 1e-4

    def at(direction: list[torch.Tensor], by: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(by * d)
            value = case.value()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(by * d)
        return value

    for direction in directions:
        slope = sum(float((g * d).sum()) for g, d in zip(slopes, direction, strict=True))
        difference = (at(direction, step) - at(direction, -step)) / (2 * step)
        assert slope == pytest.approx(difference, rel=0.01, abs=0.01 * size)


# --- what must not matter --------------------------------------------------------------------------------------------


def test_padding_on_the_right_changes_nothing(case: Case) -> None:
    assert case.value(extra_right=7) == pytest.approx(case.value(), rel=1e-5)


def test_the_order_of_items_changes_nothing(case: Case) -> None:
    assert case.value(order=(2, 0, 1)) == pytest.approx(case.value(), rel=1e-5)


def test_parts_are_finite_numbers_for_the_training_curve(case: Case) -> None:
    batch = Batch(
        rows_of(case.harmless, pad=case.pad), rows_of(case.harmful, pad=case.pad), rows_of(case.retain, pad=case.pad)
    )
    loss = case.method.loss(case.model, batch, case.reference)
    assert loss.total.shape == ()
    assert loss.total.requires_grad
    assert loss.parts
    assert all(isinstance(v, float) and math.isfinite(v) for v in loss.parts.values())


def test_a_method_reads_only_what_it_says(case: Case) -> None:
    """Parts that it does not use may be missing, as may a reference that it does not need."""
    rows = {
        "harmless": rows_of(case.harmless, pad=case.pad),
        "harmful": rows_of(case.harmful, pad=case.pad),
        "retain": rows_of(case.retain, pad=case.pad),
    }
    used = Batch(**{name: rows[name] if name in case.method.uses else None for name in rows})
    reference = case.reference if case.method.needs_reference else None
    assert torch.equal(case.method.loss(case.model, used, reference).total, case.loss())


def test_the_reference_gets_no_gradient(case: Case) -> None:
    case.loss().backward()
    assert all(p.grad is None for p in case.reference.parameters())
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in case.model.parameters())


# --- pool and n-pair -------------------------------------------------------------------------------------------------


def test_pool_by_hand() -> None:
    values = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 1, 0]])
    assert pool(values, mask, "position").tolist() == [pytest.approx((1 * 1 + 2 * 2 + 3 * 4) / 6)]
    assert pool(values, mask, "mean").tolist() == [pytest.approx(7 / 3)]
    assert pool(values, mask, "last").tolist() == [4.0]
    states = torch.stack([values, -values], dim=-1)
    assert pool(states, mask, "position").tolist() == [[pytest.approx(17 / 6), pytest.approx(-17 / 6)]]


@pytest.mark.parametrize("how", ["position", "mean", "last"])
def test_pool_at_the_edges(how: str) -> None:
    values = torch.tensor([[3.0, 5.0, 7.0], [3.0, 5.0, 7.0]])
    mask = torch.tensor([[0, 0, 0], [0, 1, 0]])
    assert pool(values, mask, how).tolist() == [0.0, 5.0]  # type: ignore[arg-type]
    longer = torch.cat([values, torch.full((2, 3), math.pi)], dim=1)
    assert torch.equal(pool(longer, torch.nn.functional.pad(mask, (0, 3)), how), pool(values, mask, how))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["position", "mean", "last"])
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
