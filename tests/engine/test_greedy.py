"""The search in bfloat16 finds the token that the whole head in float32 finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.conftest import SHAPES, random_model
from wpn_bench.engine import decode as decoding
from wpn_bench.engine import greedy
from wpn_bench.engine.decode import Rules, decode
from wpn_bench.engine.greedy import GreedyHead

VOCABULARY, WIDTH = 300, 40


def head_of(weight: torch.Tensor) -> GreedyHead:
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        head.weight.copy_(weight)
    return GreedyHead(head, head.weight.detach(), greedy._bounds(weight))


@pytest.fixture
def on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(decoding, "_HEAD_TOKENS", 0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 30.0]), spread=st.floats(0, 2))
@torch.inference_mode()
def test_it_finds_the_argmax(seed: int, scale: float, spread: float) -> None:
    """Weights of very different lengths, and inputs of all sizes."""
    stream = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, WIDTH, generator=stream)
    weight *= torch.randn(VOCABULARY, 1, generator=stream).mul(spread).exp()
    inputs = scale * torch.randn(9, WIDTH, generator=stream)
    found = head_of(weight).search(inputs)
    assert found is not None
    assert found.tolist() == (inputs.double() @ weight.double().T).argmax(1).tolist()


@torch.inference_mode()
def test_rounding_to_bfloat16_does_not_decide() -> None:
    """Without the bound, each of these tokens would lose to a neighbour that rounding favours."""
    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=stream)
    weight[1::2] = weight[::2] + 3e-3 * torch.randn(VOCABULARY // 2, WIDTH, generator=stream)
    inputs = torch.randn(200, WIDTH, generator=stream)
    right = (inputs.double() @ weight.double().T).argmax(1)
    assert not torch.equal((inputs.bfloat16() @ weight.bfloat16().T).argmax(1), right)
    assert torch.equal(head_of(weight)(inputs), right)


@torch.inference_mode()
def test_the_first_of_equal_tokens_is_taken_up_to_the_last() -> None:
    weight = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    weight[[40, 170]] = 3 * weight[7]
    weight[-1] *= 4
    inputs = torch.stack([weight[7], weight[-1]])
    assert head_of(weight)(inputs).tolist() == [40, VOCABULARY - 1]


@torch.inference_mode()
def test_flat_and_undefined_logits_are_left_to_the_head() -> None:
    weight = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)).expand(VOCABULARY, -1).contiguous()
    for inputs in (torch.ones(3, WIDTH), torch.full((3, WIDTH), torch.nan), torch.full((3, WIDTH), torch.inf)):
        search = head_of(weight)
        assert search.search(inputs) is None
        assert torch.equal(search(inputs), (inputs @ weight.T).argmax(1))
    search = head_of(torch.cat([weight[:-1], 2 * weight[-1:]]))
    flat, clear = torch.zeros(2, WIDTH), weight[:2]
    for inputs in (flat, flat, clear, flat, flat):
        search(inputs)
    assert search.failures == 2
    search(flat)
    search(clear)  # is not tried any more
    assert search.failures == greedy._FAILURES + 1


@pytest.mark.parametrize("shape", [*SHAPES, "capped"])
@pytest.mark.usefixtures("on_every_processor")
def test_decoding_gives_the_same_tokens(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the search; Gemma 2 caps its logits behind the head, so there is none."""
    model = random_model(shape)
    stream = torch.Generator().manual_seed(1)
    prompts = [torch.randint(2, 97, (1 + k % 7,), generator=stream).tolist() for k in range(12)]
    assert (GreedyHead.of(model) is None) == (shape == "capped")
    rules = Rules(20, frozenset({1}))
    searched: list[int] = []
    search: Callable[..., Any] = GreedyHead.search
    monkeypatch.setattr(GreedyHead, "search", lambda self, x: (searched.append(len(x)), search(self, x))[1])
    found = decode(model, prompts, rules, most_rows=5)
    assert bool(searched) == (shape != "capped")
    monkeypatch.setattr(GreedyHead, "of", lambda model: None)
    assert decode(model, prompts, rules, most_rows=5) == found


@pytest.mark.usefixtures("on_every_processor")
def test_which_heads_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    assert GreedyHead.of(model) is not None
    assert GreedyHead.of(model.bfloat16()) is None
    model = random_model("llama")
    monkeypatch.setattr(greedy.device_memory, "free_memory", lambda device: 97 * 32 * 2)
    assert GreedyHead.of(model) is None
    monkeypatch.undo()
    monkeypatch.setattr(greedy, "fast_bfloat16", lambda: False)
    assert GreedyHead.of(model) is None
    monkeypatch.setattr(greedy, "fast_bfloat16", lambda: True)
    model.lm_head = torch.nn.Linear(32, 97)
    assert GreedyHead.of(model) is None
