"""Log-likelihoods against one plain forward pass a request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wpn_bench.engine import head, likelihood
from wpn_bench.engine.budget import Budget
from wpn_bench.engine.likelihood import loglikelihoods

from .conftest import CONTEXT, WORDS, random_model

Pair = tuple[list[int], list[int]]
TOKEN = st.integers(3, WORDS - 1)


def plainly(model: Any, pair: Pair) -> tuple[float, bool]:
    tokens = [*pair[0], *pair[1]][-(CONTEXT + 1) :]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(-1)
    of = logprobs[-len(pair[1]) :]
    targets = torch.tensor(pair[1])
    return float(of.gather(1, targets[:, None]).sum()), bool((of.argmax(-1) == targets).all())


def check(model: Any, pairs: list[Pair], **options: Any) -> None:
    got = loglikelihoods(model, pairs, max_length=CONTEXT, **options)
    for (ours, greedy), pair in zip(got, pairs, strict=True):
        value, best = plainly(model, pair)
        assert ours == pytest.approx(value, abs=1e-3)
        assert greedy == best


@st.composite
def requests(draw: st.DrawFn) -> list[Pair]:
    """As tasks make them: contexts with several continuations, contexts that begin alike, lone tokens, overlong ones."""
    start = draw(st.lists(TOKEN, max_size=30))
    pairs = []
    for _ in range(draw(st.integers(1, 6))):
        context = [*start[: draw(st.integers(0, len(start)))], *draw(st.lists(TOKEN, min_size=1, max_size=30))]
        for _ in range(draw(st.integers(1, 4))):
            pairs.append((context, draw(st.lists(TOKEN, min_size=1, max_size=draw(st.sampled_from((1, 3, CONTEXT)))))))
    return pairs


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=requests(), tokens=st.sampled_from((1, 40, 300)))
@pytest.mark.slow
def test_equal_to_one_pass_a_request(model: Any, pairs: list[Pair], tokens: int) -> None:
    check(model, pairs, budget=Budget(tokens))


def test_rows_of_several_trees_are_taken_where_they_can_be() -> None:
    reach = {
        shape: likelihood._support_of(random_model(shape)).packed_length for shape in ("opt", "neo", "gpt2", "llama")
    }
    assert reach["neo"] == 8
    assert min(reach["opt"], reach["gpt2"], reach["llama"]) > CONTEXT


def test_a_model_that_does_not_take_them_gets_plain_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = random_model("opt", seed=3)
    forward = type(strange).forward

    def no_positions(self: Any, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(type(strange), "forward", no_positions)
    assert likelihood._support_of(strange).packed_length == 0
    monkeypatch.undo()
    check(strange, [([5, 6, 7], [8]), ([5, 6, 7], [9, 10]), ([4] * 60, [5, 5])])


def test_logits_that_are_capped_behind_the_head() -> None:
    model = random_model("capped")
    assert not likelihood._support_of(model).head_is_last
    check(model, [([5, 6, 7], [8]), ([5, 6, 7], [9, 10]), ([4, 5] * 15, [5, 5]), ([4, 5] * 15, [7])])


def test_order_and_count(model: Any) -> None:
    pairs: list[Pair] = [([5, 6, k], [7, k]) for k in range(3, 40)]
    told: list[int] = []
    forward = loglikelihoods(model, pairs, max_length=CONTEXT, advance=told.append)
    backward = loglikelihoods(model, pairs[::-1], max_length=CONTEXT)[::-1]
    assert sum(told) == len(pairs)
    assert [f[0] for f in forward] == pytest.approx([b[0] for b in backward], abs=1e-4)
    # The same request twice is the same number twice: a tie stays a tie.
    twice = loglikelihoods(model, [pairs[0], pairs[5], pairs[0]], max_length=CONTEXT)
    assert twice[0] == twice[2]


@pytest.mark.slow
def test_memory_that_runs_out_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[Pair] = [([3 + k % 7] * (1 + k % 20), [4 + k % 5, 6]) for k in range(60)]
    pairs += [([5] * 70, [6, 7])]
    want = loglikelihoods(model, pairs, max_length=CONTEXT)
    real, calls = likelihood._read_head, 0

    def short(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 2, 5):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(likelihood, "_read_head", short)
    told: list[int] = []
    got = loglikelihoods(model, pairs, max_length=CONTEXT, advance=told.append)
    assert calls > 5
    assert sum(told) == len(pairs)
    assert [g[0] for g in got] == pytest.approx([w[0] for w in want], abs=1e-4)


@pytest.mark.parametrize("pair", [([], [5]), ([5], []), ([5], [6] * (CONTEXT + 1))])
def test_what_has_no_likelihood(model: Any, pair: Pair) -> None:
    with pytest.raises(ValueError, match="token"):
        loglikelihoods(model, [([5], [6]), pair], max_length=CONTEXT)


@pytest.mark.parametrize("tile", [1, 7, WORDS, 1000])
def test_the_head_in_tiles(model: Any, monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    check(model, [([5, 6, 7 + k], [k, 90 - k, 3]) for k in range(12)])


def test_a_head_that_is_more_than_a_linear_layer() -> None:
    model = random_model("opt", seed=2)
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits * 2)
    check(model, [([5, 6, 7], [8]), ([5, 6, 7], [9, 10]), ([4, 5] * 15, [5, 5])])


@pytest.mark.parametrize("tile", [4, 1000])
def test_equal_logits_go_to_the_first(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(head, "TILE", tile)
    model = random_model("opt", seed=1)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    (first, greedy), (other, not_greedy) = loglikelihoods(model, [([5, 6], [0]), ([5, 6], [9])], max_length=CONTEXT)
    assert first == other
    assert (greedy, not_greedy) == (True, False)


def contexts_that_begin_alike(n: int) -> list[Pair]:
    rng = torch.Generator().manual_seed(n)
    start = torch.randint(3, WORDS, (20,), generator=rng).tolist()
    pairs: list[Pair] = []
    for k in range(n):
        context = [*start, *torch.randint(3, WORDS, (1 + k % 7,), generator=rng).tolist()]
        pairs += [(context, [5]), (context, [6]), (context, [5, 7, 9])]
    return pairs


def test_a_prefix_that_is_computed_once_changes_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    outputs = likelihood._outputs

    def counted(model: Any, head_is_last: bool, **inputs: Any) -> Any:
        fed.append(inputs["input_ids"].numel())
        return outputs(model, head_is_last, **inputs)

    pairs = contexts_that_begin_alike(12)
    loglikelihoods(model, pairs[:3], max_length=CONTEXT)  # find out what the model supports
    likelihood._continues(model)
    monkeypatch.setattr(likelihood, "_outputs", counted)
    check(model, pairs)
    without = sum(fed)
    fed.clear()
    check(model, pairs, cache_prefix=True)
    support = likelihood._support_of(model)
    if likelihood._continues(model) and support.packed_length > CONTEXT:
        assert sum(fed) < without
    check(model, pairs[:1], cache_prefix=True)
    check(model, [([4], [5]), ([8], [6]), ([9, 4], [5])], cache_prefix=True)


def test_a_prefix_is_computed_once_however_long_the_continuations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    start = list(range(5, 22))
    pairs: list[Pair] = [([*start, 3 + k], [7, *range(4, 4 + 5 * k)]) for k in range(6)]
    assert likelihood._continues(model)
    fed: list[int] = []
    outputs = likelihood._outputs

    def counted(model: Any, head_is_last: bool, **inputs: Any) -> Any:
        fed.append(int((inputs["input_ids"] != 0).sum()))  # padding is token 0
        return outputs(model, head_is_last, **inputs)

    monkeypatch.setattr(likelihood, "_outputs", counted)
    loglikelihoods(model, pairs, max_length=CONTEXT, cache_prefix=True)
    assert sum(fed) == len(start) + sum(len(continuation) for _, continuation in pairs)
    monkeypatch.undo()
    check(model, pairs, cache_prefix=True)


def test_a_prefix_does_not_include_the_tokens_whose_outputs_are_needed() -> None:
    """All sequences begin alike, but one continuation begins within the common part."""
    start = list(range(5, 25))
    pairs: list[Pair] = [(start, [3 + k, 4]) for k in range(5)]
    check(random_model("llama"), [*pairs, (start[:17], [*start[17:], 4])], cache_prefix=True)


def test_a_model_without_a_plain_cache_computes_the_prefix_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "caches_plainly", lambda model: False)
    check(random_model("llama"), contexts_that_begin_alike(8), cache_prefix=True)


def test_models_that_continue_a_cached_prefix() -> None:
    assert {shape: likelihood._continues(random_model(shape)) for shape in ("opt", "gpt2", "llama")} == dict.fromkeys(
        ("opt", "gpt2", "llama"), True
    )
