"""Packed rows against padded rows: the same losses and gradients, for every method and every architecture."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tests.models.architectures import ARCHITECTURES
from wpn_bench.engine import readout
from wpn_bench.unlearn import loop, passes, remembered
from wpn_bench.unlearn.batches import Batch
from wpn_bench.unlearn.methods import METHODS
from wpn_bench.unlearn.methods.targets import lowered, without

from .conftest import Row, rows_of, some_rows

# Models whose rows cannot be packed: states that run over all tokens, positions of their own, logits that are changed after the head.
UNPACKED = {
    "bloom", "falcon_alibi", "mpt", "gemma2", "granite", "cohere", "mamba", "mamba2", "recurrent_gemma", "lfm2", "falcon_h1",
}  # fmt: skip


def batch_of(negatives: int, answers: int = 0) -> Batch:
    """Three items whose prompts begin alike, and texts of unequal length."""
    first = [7, 9, 11]

    def again(row: Row, seed: int, n: int) -> list[Row]:
        return [(row[0][: row[1]] + other[0][other[1] :], row[1]) for other in some_rows(seed, n)]

    def within(rows: list[Row]) -> list[Row]:
        return [([token % 250 + 5 for token in ids], start) for ids, start in rows]

    harmless = within([(first + ids, start + 3) for ids, start in some_rows(1, 3)])
    harmful = within([row for k, one in enumerate(harmless) for row in again(one, 10 + k, negatives)])
    random = within([row for k, one in enumerate(harmless) for row in again(one, 20 + k, answers)])
    return Batch(
        rows_of(harmless),
        rows_of(harmful, owners=[k for k in range(3) for _ in range(negatives)]),
        rows_of(within(some_rows(2, 4, text=True))),
        rows_of(random, owners=[k for k in range(3) for _ in range(answers)]) if random else None,
    )


def model_of(architecture: str, *, by: float = 0.0) -> Any:
    """A model in training mode without dropout. With `by`, its weights are moved a little."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if by:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(by * torch.randn_like(p))
    return model.train()


def computed(method: Any, model: Any, reference: Any, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss and its gradients."""
    model.zero_grad(set_to_none=True)
    loss = method.loss(model, batch, reference).total
    loss.backward()
    return loss.detach(), [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_alike(method: Any, model: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(method.negatives, method.random_answers)
    ours = computed(method, model, reference, batch)
    with monkeypatch.context() as patch:
        patch.setattr(passes, "packs", lambda model: False)
        theirs = computed(method, model, reference, batch)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    largest = max(float(g.abs().max()) for g in theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * max(largest, 1e-3)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_gives_what_padded_rows_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = METHODS.get(name)
    model, reference = model_of("llama"), model_of("llama", by=0.01).eval()
    assert passes.packs(model)
    assert_alike(kind(kind.Config()), model, reference, monkeypatch)


@pytest.mark.parametrize("name", list(METHODS))
def test_gradients_are_added_up_in_a_fixed_order(name: str) -> None:
    """Where a place stands twice in `places`, several threads add up the gradient of `states[places]` in no fixed order."""
    kind = METHODS.get(name)
    method = kind(kind.Config())
    model, reference = model_of("llama"), model_of("llama", by=0.01).eval()
    total = method.loss(model, batch_of(method.negatives, method.random_answers), reference).total
    seen: set[Any] = set()
    todo = [total.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    assert any(type(node).__name__.startswith("IndexSelect") for node in seen)
    for node in seen:
        if type(node).__name__.startswith("IndexBackward"):
            for places in node._saved_indices:
                assert places is None or places.dtype == torch.bool or len(places.unique()) == places.numel()


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_an_architecture_gives_what_padded_rows_give(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = model_of(architecture), model_of(architecture, by=0.01).eval()
    state = torch.get_rng_state()
    assert passes.packs(model) is (architecture not in UNPACKED)
    assert torch.equal(torch.get_rng_state(), state)
    for name in ("wpn", "rmu"):
        kind = METHODS.get(name)
        assert_alike(kind(kind.Config()), model, reference, monkeypatch)


def test_dropout_is_drawn_for_each_row() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["opt"]()
    assert model.config.dropout > 0
    assert not passes.packs(model.train())
    assert passes.packs(model.eval())


@pytest.mark.parametrize("name", ["sft_kl", "rmu"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_equal_reference_gives_no_gradient(name: str, checkpointing: bool) -> None:
    """Before the first step, rounding must not look like a difference: Adam would make it as large as any other."""
    kind = METHODS.get(name)
    method = kind(kind.Config())
    model = model_of("llama")
    reference = copy.deepcopy(model).eval()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    passes.prepare(model, reference)
    parts = method.loss(model, batch_of(1), reference).parts
    assert parts["retain" if name == "rmu" else "retain_kl"] == pytest.approx(0.0, abs=0.0 if name == "rmu" else 1e-9)


def test_prompts_and_equal_rows_are_computed_once() -> None:
    model = model_of("llama")
    seen = []
    model.model.layers[0].register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    batch = batch_of(2)
    passes.packs(model)
    seen.clear()
    kind = METHODS.get("wpn")
    kind(kind.Config(kl=0.0)).loss(model, batch, None)
    rows = [
        tuple(ids[mask.bool()].tolist())
        for part in (batch.harmless, batch.harmful)
        if part is not None
        for ids, mask in zip(part.input_ids, part.attention_mask, strict=True)
    ]
    prefixes = {row[:n] for row in rows for n in range(1, len(row) + 1)}
    assert seen == [len(prefixes)]


def test_what_a_reference_computed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = METHODS.get("dpo")
    method = kind(kind.Config())
    model, reference = model_of("llama"), model_of("llama", by=0.01).eval()
    passes.prepare(model, reference)
    calls: list[int] = []
    reference.model.register_forward_hook(lambda module, given, out: calls.append(1))
    first = computed(method, model, reference, batch_of(1))
    assert len(calls) == 1
    remembered.remember(reference, "these weights")
    for _ in range(3):
        again = computed(method, model, reference, batch_of(1))
        assert torch.equal(first[0], again[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert len(calls) == 2
    monkeypatch.setattr(remembered, "BYTES", 1)
    other = batch_of(1)
    assert other.harmless is not None
    other.harmless.input_ids[0, 0] += 1
    computed(method, model, reference, other)  # nothing is kept now
    computed(method, model, reference, batch_of(1))
    assert len(calls) == 4
    remembered.remember(reference, None)
    computed(method, model, reference, batch_of(1))
    assert len(calls) == 5


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradients_of_the_head(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "CHUNK", 22)  # two rows at a time
    torch.manual_seed(0)
    head, other = (torch.nn.Linear(3, 11, bias=bias).double() for _ in range(2))
    states = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    before, targets = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 11, (5,))
    assert readout.is_linear(head, states)

    def likelihood(states: Any, *_: Any) -> Any:
        return readout.logprobs(head, states, targets)

    def divergence(states: Any, *_: Any) -> Any:
        return readout.kl_divergences(head, states, other, before)

    target = lowered(lambda part: other(before[part]), targets, 2.0)

    def distilled(states: Any, *_: Any) -> Any:
        return readout.divergences(head, states, target, cross_entropy=True)

    def unlikelihood(states: Any, *_: Any) -> Any:
        return readout.divergences(head, states, without(targets))

    def entropy(states: Any, *_: Any) -> Any:
        return readout.entropies(head, states)

    inputs = (states, *head.parameters())
    assert torch.autograd.gradcheck(likelihood, inputs)

    def margin(states: Any, *_: Any) -> Any:
        return readout.logit_margins(head, states)

    for one in (distilled, unlikelihood, entropy, margin):
        assert torch.autograd.gradcheck(one, inputs)
        plain = torch.autograd.grad(one(states).sum(), inputs)
        with monkeypatch.context() as patch:
            patch.setattr(readout, "is_linear", lambda head, states: False)
            values = one(states)
        torch.testing.assert_close(one(states), values)
        torch.testing.assert_close(plain, torch.autograd.grad(values.sum(), inputs))
    assert torch.autograd.gradcheck(divergence, inputs)
    logits = head(states)
    torch.testing.assert_close(
        likelihood(states), -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    )
    p, q = other(before).log_softmax(-1), logits.log_softmax(-1)
    torch.testing.assert_close(divergence(states), (p.exp() * (p - q)).sum(-1))
    torch.testing.assert_close(margin(states), logits.amax(1) - logits.mean(1))
    torch.testing.assert_close(entropy(states), -(q.exp() * q).sum(-1))
    torch.testing.assert_close(unlikelihood(states), -(1 - q.exp().gather(1, targets.unsqueeze(1))).log().squeeze(1))
    q_of = (other(before) - 2.0 * torch.nn.functional.one_hot(targets, 11)).softmax(-1)
    torch.testing.assert_close(distilled(states), -(q_of * q).sum(-1))
    with torch.no_grad():
        torch.testing.assert_close(likelihood(states), readout.logprobs(torch.nn.Sequential(head), states, targets))


@pytest.mark.parametrize("bias", [False, True])
def test_the_head_in_bfloat16(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products are rounded to bfloat16, as `torch.autocast` does, and nothing else is."""
    monkeypatch.setattr(readout, "CHUNK", 128)  # two rows at a time
    torch.manual_seed(0)
    exact = torch.nn.Linear(16, 64, bias=bias)
    states, targets = torch.randn(5, 16, requires_grad=True), torch.randint(0, 64, (5,))
    head = copy.deepcopy(exact)
    inputs = (states, *head.parameters())

    def both() -> tuple[Any, Any]:
        values = readout.logprobs(head, states, targets)
        return values, torch.autograd.grad(values.sum(), inputs)

    with loop.half_precision([Headed(head)], "bf16", "cpu"):
        assert readout.is_linear(head, states)
        values, gradients = both()
        monkeypatch.setattr(readout, "is_linear", lambda head, states: False)
        by_torch, gradients_by_torch = both()
    assert readout.rounded_to(head) is None
    torch.testing.assert_close(values, by_torch)
    expected = readout.logprobs(exact, states, targets)
    assert not torch.equal(values, expected)
    torch.testing.assert_close(values, expected, rtol=0, atol=0.05)
    for one, other in zip(gradients, gradients_by_torch, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


class Headed(torch.nn.Module):
    """A model that is nothing but a head."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = self.base_model = head

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head

    def forward(self, states: Any) -> Any:
        return self.head(states)


def test_unlikelihood_is_exact_where_a_token_is_certain() -> None:
    """In float32, 1 - p is 0 here, and its logarithm is not finite."""
    head = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
    states = torch.tensor([[30.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = readout.divergences(head, states, without(torch.tensor([0])))
    assert float(found.detach()) == pytest.approx(-math.log(3 / (math.exp(30) + 3)), rel=1e-6)
    found.sum().backward()
    torch.testing.assert_close(states.grad, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))
