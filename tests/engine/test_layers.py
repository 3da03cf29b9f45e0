"""Layers of every kind of model: the logit lens, and outputs that are replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from wpn_bench.engine.layers import Pair, layers_of, lens, patched, states
from wpn_bench.errors import JobFailed

from .conftest import random_model

# Prompts and answers of different lengths, so that rows are padded. The number of all answers' tokens is no multiple of the
# longest row, because GPT-2 and others give the states the shape of the input again.
PAIRS: list[Pair] = [([1, 5, 9, 4], [7, 8, 6]), ([1, 6], [9, 10, 11, 5]), ([3, 12, 4, 5, 6, 7, 8], [2])]


def alone(model: Any, pair: Pair) -> torch.Tensor:
    """The log-probabilities of an answer, computed without padding and without hooks."""
    head, answer = pair
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*head, *answer]])).logits[0, len(head) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(answer)), answer]


def test_the_layers_are_those_that_read_text() -> None:
    """A model that also sees pictures has another list of layers of the same length before them."""

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision, self.language = (torch.nn.ModuleDict({"layers": _two_layers()}) for _ in range(2))
            self.config = LlamaConfig(num_hidden_layers=2)

        def get_decoder(self) -> Any:
            return self.language

    model: Any = Both()
    assert layers_of(model) is model.language["layers"]
    model.config.num_hidden_layers = 3
    with pytest.raises(JobFailed, match=r"the layers of the model \(llama\) cannot be found"):
        layers_of(model)


def _two_layers() -> torch.nn.ModuleList:
    return torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])


def test_after_the_last_layer_the_lens_shows_the_models_own_log_probabilities(model: Any) -> None:
    found = lens(model, PAIRS)
    assert len(found) == len(layers_of(model)) == 2
    assert found[-1] == pytest.approx([float(alone(model, pair).mean()) for pair in PAIRS], abs=1e-5)
    assert found[0] != pytest.approx(found[-1], abs=1e-3)


def test_the_lens_of_a_layer_is_norm_and_head_of_its_output() -> None:
    """Computed again for Llama, whose norm and head are known."""
    model = random_model("llama")
    for pair, value in zip(PAIRS, lens(model, PAIRS)[0], strict=True):
        head, answer = pair
        with torch.inference_mode():
            ids = torch.tensor([[*head, *answer][:-1]])
            hidden = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1]
            logits = model.lm_head(model.model.norm(hidden[0, len(head) - 1 :]))
        assert value == pytest.approx(float(logits.log_softmax(-1)[range(len(answer)), answer].mean()), abs=1e-5)


def test_a_models_own_outputs_change_nothing(model: Any) -> None:
    plain = patched(model, PAIRS, None, None)
    assert plain == pytest.approx([float(alone(model, pair).mean()) for pair in PAIRS], abs=1e-5)
    for layer, source in enumerate(states(model, PAIRS)):
        assert len(source) == sum(len(answer) for _, answer in PAIRS)
        assert patched(model, PAIRS, layer, source) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("shape", ["opt", "llama"])
def test_another_models_last_outputs_replace_all_but_the_head(shape: str) -> None:
    """With the same norm and head, the last layer's outputs decide alone; the first layer's do not."""
    base, other = random_model(shape), random_model(shape, seed=1)
    for name, weights in other.named_parameters():
        if "layers" not in name:
            weights.data.copy_(dict(base.named_parameters())[name].data)
    first, last = states(other, PAIRS)
    assert patched(base, PAIRS, 1, last) == pytest.approx(patched(other, PAIRS, None, None), abs=1e-5)
    assert patched(base, PAIRS, 0, first) != pytest.approx(patched(base, PAIRS, None, None), abs=1e-3)


def test_hooks_are_removed_after_an_error(model: Any) -> None:
    wrong = states(model, PAIRS)[0][:-1]
    with pytest.raises((RuntimeError, IndexError)):
        patched(model, PAIRS, 0, wrong)
    assert not any(layer._forward_hooks for layer in layers_of(model))
    assert not model.get_output_embeddings()._forward_pre_hooks
