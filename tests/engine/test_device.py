"""Every tensor of the engine is on the device of the model. The device is pretended, so this runs without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pretended_device import CPU, DEVICE, PretendedDevice, WrongDevice, pretended

from wpn_bench.engine import classify, likelihood
from wpn_bench.engine.decode import Rules, Sampling, decode
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.lab_training.judge import load_judge

from .conftest import random_model

PREFIX = list(range(5, 25))
PROMPTS = [[*PREFIX, k, k + 1] for k in range(5, 11)] + [[33, 34, 35], [40]]
PAIRS = [([*PREFIX, k], [k + 1, k + 2]) for k in range(5, 9)] + [([1, 30], [31, 32, 33]), ([1, 30], [40])]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedDevice]:
    with pretended(monkeypatch) as there:
        yield there


# --- the pretended device itself -------------------------------------------------------------------------------------


def test_it_is_as_strict_as_a_real_one(device: PretendedDevice) -> None:
    here = torch.ones(3)
    there = here.to(DEVICE)
    assert (here.device, there.device, there[1:].view(2).device) == (CPU, DEVICE, DEVICE)
    assert (there * 2).device == (there + torch.tensor(1.0)).device == DEVICE
    assert torch.zeros(2, device=there.device).device == torch.zeros_like(there).device == DEVICE
    assert (there.cpu() + here).tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 2])].device == DEVICE
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: here[torch.tensor([0], device=DEVICE)],
        lambda: there.masked_fill_(here.bool(), 0),
        lambda: there.sum() * here,
        lambda: there.numpy(),
    ):
        with pytest.raises(WrongDevice):
            mixed()


def test_gradients_are_where_the_weights_are(device: PretendedDevice) -> None:
    layer = torch.nn.Linear(3, 2).to(DEVICE)
    (layer(torch.ones(4, 3, device=DEVICE)).cpu() * torch.ones(4, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device == DEVICE
    assert layer.weight.grad.tolist() == [[4.0] * 3] * 2


# --- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["opt", "neo", pytest.param("capped", marks=pytest.mark.slow)])
def test_everything_is_on_the_device_of_the_model(device: PretendedDevice, shape: str) -> None:
    plain, moved = random_model(shape), random_model(shape).to(DEVICE)
    assert moved.device == DEVICE
    for prefix in (False, True):
        found = loglikelihoods(moved, PAIRS, max_length=40, cache_prefix=prefix)
        expected = loglikelihoods(plain, PAIRS, max_length=40, cache_prefix=prefix)
        assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    for rules in (Rules(6), Rules(6, sampling=Sampling(1.0, 0.9))):
        assert decode(moved, PROMPTS, rules, most_rows=3) == decode(plain, PROMPTS, rules, most_rows=3)


def test_decoding_by_transformers(device: PretendedDevice) -> None:
    plain, moved = random_model("opt"), random_model("opt").to(DEVICE)
    for model in (plain, moved):
        model.generation_config.repetition_penalty = 1.3
    assert decode(moved, PROMPTS, Rules(4)) == decode(plain, PROMPTS, Rules(4))


def test_classification(device: PretendedDevice) -> None:
    judge = load_judge()
    texts = ["What a lovely day.", "You are an idiot.", "bread " * 600]
    there = classify.Classifier.of(judge.model.to(DEVICE), judge.tokenizer, lambda logits: logits.sigmoid()[:, 0])
    found = classify.scores(there, texts)
    here = classify.Classifier.of(load_judge().model, judge.tokenizer, lambda logits: logits.sigmoid()[:, 0])
    assert found == pytest.approx(classify.scores(here, texts), abs=1e-6)


@pytest.mark.parametrize("lost", ["mask", "positions"])
def test_a_tensor_that_was_not_moved_is_found(
    device: PretendedDevice, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faults of a forgotten `.to(device)`."""
    model: Any = random_model("opt").to(DEVICE)
    loglikelihoods(model, PAIRS, max_length=40)
    outputs = likelihood._outputs
    name = {"mask": "attention_mask", "positions": "position_ids"}[lost]

    def forgetful(model: Any, head_is_last: bool, **inputs: Any) -> Any:
        return outputs(model, head_is_last, **(inputs | {name: inputs[name].cpu()} if name in inputs else inputs))

    monkeypatch.setattr(likelihood, "_outputs", forgetful)
    with pytest.raises(WrongDevice, match="on the CPU"):
        loglikelihoods(model, PAIRS, max_length=40)
