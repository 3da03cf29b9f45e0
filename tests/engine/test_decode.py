"""Decoding: every row says what it would say alone, whoever else is there, and whatever is shared, left or tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wpn_bench import models
from wpn_bench.engine import decode as module
from wpn_bench.engine.decode import Rules, Sampling, decode
from wpn_bench.errors import UserError

END = 1
VOCABULARY = 12

Speak = Callable[..., Any]


def rule(tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits that turn on every token and its place; the end comes with any step alike."""
    stream = torch.Generator().manual_seed(hash(tokens) % 2**31)
    return torch.randn(VOCABULARY, generator=stream)


def alone(prompt: list[int], n: int, stopped: Callable[[list[int]], bool] = lambda new: False) -> list[int]:
    new: list[int] = []
    while len(new) < n and not (new and stopped(new)):
        token = int(rule((*prompt, *new)).argmax())
        if token == END:
            break
        new.append(token)
    return new


PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40), st.lists(st.integers(2, 5), max_size=12)),
    max_size=24,
).map(lambda rows: [[2 + which] + [(7 * which + k) % 9 for k in range(shared)] + own for which, shared, own in rows])


@settings(max_examples=60, deadline=None)
@given(prompts=PROMPTS, n=st.integers(1, 12), most_rows=st.integers(1, 9), seed=st.none() | st.integers(0, 3))
def test_every_row_is_as_if_alone(
    make_speaker: Speak, prompts: list[list[int]], n: int, most_rows: int, seed: int | None
) -> None:
    """One-token prompts, equal ones, long common beginnings; ends, stops and the longest; greedy and drawn."""

    def stopped(new: list[int]) -> bool:
        return new[-2:] == [3, 4] or sum(new) > 60

    sampling = None if seed is None else Sampling(0.8, 0.9, seed)
    rules = Rules(n, frozenset({END}), stopped, sampling)
    speaker, advanced = make_speaker(rule, 70), []
    got = decode(speaker, prompts, rules, most_rows=most_rows, advance=advanced.append)
    if seed is None:
        assert got == [alone(prompt, n, stopped) for prompt in prompts]
    else:
        assert got == [decode(make_speaker(rule, 70), [prompt], rules)[0] for prompt in prompts]
    assert sum(advanced) == len(prompts)
    assert all(rows <= most_rows for rows, _ in speaker.passes)


@settings(max_examples=40, deadline=None)
@given(prompts=PROMPTS, failing=st.sets(st.integers(0, 25), max_size=5), n=st.integers(1, 10))
def test_short_memory_loses_nothing(make_speaker: Speak, prompts: list[list[int]], failing: set[int], n: int) -> None:
    speaker = make_speaker(rule)
    speak, calls = speaker.forward, 0

    def forward(**given_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in failing and given_["input_ids"].shape[0] > 1:
            # As it happens: some layers have taken the new token, others not.
            given_["past_key_values"].update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 7)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return speak(**given_)

    speaker.__class__ = type("Failing", (type(speaker),), {"__call__": lambda self, **given_: forward(**given_)})
    advanced: list[int] = []
    got = decode(speaker, prompts, Rules(n, frozenset({END})), advance=advanced.append)
    assert got == [alone(prompt, n) for prompt in prompts]
    assert sum(advanced) == len(prompts)


def test_short_memory_halves_what_is_at_work(make_speaker: Speak) -> None:
    speaker = make_speaker(rule)
    tried: list[int] = []

    def speak(self: Any, **given_: Any) -> Any:
        tried.append(given_["input_ids"].shape[0])
        if tried[-1] > 2:
            raise MemoryError
        return self.forward(**given_)

    speaker.__class__ = type("Failing", (type(speaker),), {"__call__": speak})
    prompts = [[k % 5, k // 5, 3] for k in range(16)]
    assert decode(speaker, prompts, Rules(6), most_rows=16) == [alone_without_end(p, 6) for p in prompts]
    assert [n for n in tried if n > 2] == [16, 8, 4]


def alone_without_end(prompt: list[int], n: int) -> list[int]:
    new: list[int] = []
    for _ in range(n):
        new.append(int(rule((*prompt, *new)).argmax()))
    return new


def test_what_never_fits_is_said_and_other_errors_are_raised(make_speaker: Speak) -> None:
    for error, expected in ((MemoryError(), UserError), (RuntimeError("shapes do not match"), RuntimeError)):
        speaker = make_speaker(rule)

        def speak(self: Any, error: BaseException = error, **given_: Any) -> Any:
            raise error

        speaker.__class__ = type("Failing", (type(speaker),), {"__call__": speak})
        with pytest.raises(expected):
            decode(speaker, [[2], [3]], Rules(3))


def test_no_prompts_and_a_prompt_without_tokens(make_speaker: Speak) -> None:
    assert decode(make_speaker(rule), [], Rules(3)) == []
    with pytest.raises(ValueError, match="has no tokens"):
        decode(make_speaker(rule), [[1], []], Rules(3))


def test_rows_leave_and_others_take_their_places(make_speaker: Speak) -> None:
    """Prompt k says k more tokens: 1 + 2 + ... + 20 in all, and never many idle rows."""

    def counting(tokens: tuple[int, ...]) -> torch.Tensor:
        return torch.eye(32)[END if len(tokens) >= 2 + tokens[0] else 2]

    speaker = make_speaker(counting)
    prompts = [[k, 3] for k in range(1, 21)]
    got = decode(speaker, prompts, Rules(31, frozenset({END})), most_rows=8)
    assert [len(new) for new in got] == list(range(1, 21))
    computed = sum(rows * columns for rows, columns in speaker.passes)
    assert computed == sum(2 + k for k in range(1, 21))  # the prompt, and every new token
    assert [rows > 6 for rows, columns in speaker.passes if columns == 1].count(True) >= 20


def test_no_row_is_wider_than_the_context(make_speaker: Speak) -> None:
    """A long row ends while others, that took places later, have tokens to go: its columns must leave with it."""

    def counting(tokens: tuple[int, ...]) -> torch.Tensor:
        return torch.eye(80)[END if len(tokens) >= tokens[0] + tokens[1] else 2]

    def prompt(says: int, length: int, which: int) -> list[int]:
        return [says, length, which] + [3] * (length - 3)

    prompts = [prompt(12, 58, 4), *(prompt(2, 10, k) for k in range(7)), *(prompt(12, 5, k) for k in range(7))]
    got = decode(make_speaker(counting, context=70), prompts, Rules(12, frozenset({END})), most_rows=8)
    assert [len(new) for new in got] == [12] + [2] * 7 + [12] * 7


def test_equal_prompts_are_decoded_once(make_speaker: Speak) -> None:
    speaker, advanced = make_speaker(rule), []
    got = decode(speaker, [[2, 3], [4], [2, 3], [2, 3]], Rules(5), advance=advanced.append)
    assert got[0] == got[2] == got[3] == alone_without_end([2, 3], 5)
    assert max(rows for rows, _ in speaker.passes) == 2
    assert sorted(advanced) == [1, 3]


def test_a_common_beginning_is_computed_once(make_speaker: Speak) -> None:
    template = [(3 * k) % 11 for k in range(100)]
    prompts = [[*template, *([2 + k] * (1 + k % 5))] for k in range(8)]
    speaker = make_speaker(rule)
    assert decode(speaker, prompts, Rules(4)) == [alone_without_end(p, 4) for p in prompts]
    assert speaker.passes[0] == (1, 100)
    assert speaker.passes[1] == (8, 5)


# --- real architectures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["opt", "neo", "gpt2", "llama", "mistral"])
def lm(request: pytest.FixtureRequest, make_lm: Callable[..., Path]) -> Iterator[Any]:
    """A random model of each kind; Mistral and GPT-Neo look at 8 tokens back only, in all layers and in every second."""
    if request.param in ("opt", "neo"):
        yield models.load(make_lm(request.param))[0]
        return
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {"vocab_size": 300, "initializer_range": 0.3, "bos_token_id": END, "eos_token_id": END}
    config: Any = {
        "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **common),
        "llama": lambda: LlamaConfig(num_key_value_heads=2, max_position_embeddings=256, **sizes, **common),
        "mistral": lambda: MistralConfig(
            num_key_value_heads=2, max_position_embeddings=256, sliding_window=8, **sizes, **common
        ),
    }[request.param]()
    yield AutoModelForCausalLM.from_config(config).eval()


def by_generate(model: Any, prompt: list[int], n: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=n,
            eos_token_id=END,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    return [int(token) for token in (out[: out.index(END)] if END in out else out)]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_greedy_tokens_are_those_of_generate(lm: Any, data: st.DataObject) -> None:
    tokens = st.integers(2, 280)
    templates = data.draw(st.lists(st.lists(tokens, min_size=18, max_size=40), min_size=1, max_size=2))
    beginnings = st.sampled_from([[], *templates, *templates])
    own = st.lists(tokens, min_size=1, max_size=20)
    prompts = [a + b for a, b in data.draw(st.lists(st.tuples(beginnings, own), min_size=2, max_size=14))] + [[5]]
    got = decode(lm, prompts, Rules(10, frozenset({END})), most_rows=data.draw(st.sampled_from([3, 8, 32])))
    assert got == [by_generate(lm, prompt, 10) for prompt in prompts]
    turned = decode(lm, prompts[::-1], Rules(10, frozenset({END})))
    assert turned[::-1] == got


def test_a_shared_beginning_changes_no_token(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the windows and with suffixes of many lengths; a row that is nearly all beginning too."""
    stream = torch.Generator().manual_seed(3)
    template = torch.randint(2, 280, (60,), generator=stream).tolist()
    prompts = [template + torch.randint(2, 280, (1 + 7 * k,), generator=stream).tolist() for k in range(9)]
    prompts.append(template[:30])
    got = decode(lm, prompts, Rules(12))
    monkeypatch.setattr(module, "shared_prefixes", lambda sequences: [])
    assert decode(lm, prompts, Rules(12)) == got


def test_the_context_is_used_to_its_end(lm: Any) -> None:
    """GPT-Neo has no mask wider than its context, so no column may be left of rows that ended."""
    stream = torch.Generator().manual_seed(4)
    lengths = [246, 240, 200, 100, 3, 2, 1]
    prompts = [torch.randint(2, 280, (n,), generator=stream).tolist() for n in lengths]
    got = decode(lm, prompts, Rules(10), most_rows=4)
    assert got == [decode(lm, [prompt], Rules(10))[0] for prompt in prompts]
    assert {len(new) for new in got} == {10}


def test_drawn_tokens_do_not_depend_on_the_company(lm: Any) -> None:
    prompts = [[3, 4, 5], [6] * 9, [7]]
    rules = Rules(8, sampling=Sampling(1.5, None, 1))
    got = decode(lm, prompts, rules)
    assert decode(lm, prompts[::-1], rules, most_rows=1)[::-1] == got
    assert got != decode(lm, prompts, Rules(8, sampling=Sampling(1.5, None, 2)))


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_draws_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    draws = torch.linspace(0, 0.9999, 1000, dtype=torch.float64)
    logits = p.log().expand(1000, -1)
    counts = torch.bincount(module.drawn(logits, draws, Sampling(1.0)), minlength=4)
    assert counts.tolist() == pytest.approx([500, 0, 300, 200], abs=2)
    counts = torch.bincount(module.drawn(logits, draws, Sampling(1.0, 0.6)), minlength=4)
    assert counts.tolist() == pytest.approx([625, 0, 375, 0], abs=2)
    assert set(module.drawn(logits, draws, Sampling(1.0, 0.01)).tolist()) == {0}
    sharp = torch.bincount(module.drawn(logits, draws, Sampling(0.1)), minlength=4)
    assert sharp[0] > 990
    last = module.drawn(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1.0], dtype=torch.float64), Sampling(1.0))
    assert last.tolist() == [0]


# --- models with other memories than keys and values -----------------------------------------------------------------


def test_models_that_are_steered_go_by_their_own_generate(make_lm: Callable[..., Path]) -> None:
    """A repetition penalty of the generation configuration counts, as it does for `generate`."""
    model = models.load_fresh(make_lm("opt")).eval()
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [8]]
    plain = decode(model, prompts, Rules(12, frozenset({END, 0})))
    model.generation_config.repetition_penalty = 3.0
    steered = decode(model, prompts, Rules(12, frozenset({END, 0})))
    assert steered != plain
    assert steered == [by_generate(model, prompt, 12) for prompt in prompts]
    first_two = decode(model, prompts, Rules(12, frozenset({END, 0}), lambda new: len(new) == 2))
    assert first_two == [new[:2] for new in steered]
    drawn = Rules(12, frozenset({END, 0}), sampling=Sampling(2.0, 0.9, 1))
    before = torch.random.get_rng_state()
    assert decode(model, prompts[::-1], drawn) == decode(model, prompts, drawn)[::-1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_which_models_are_plain(lm: Any) -> None:
    assert module.is_plain(lm)
    from transformers import AutoModelForCausalLM, MambaConfig

    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=50, hidden_size=8, state_size=2, num_hidden_layers=1, time_step_rank=2)
    ).eval()
    assert not module.is_plain(mamba)
    assert [len(new) for new in decode(mamba, [[5, 6], [7]], Rules(4))] == [4, 4]


def test_independent_samples_after_equal_prompts(make_speaker: Speak) -> None:
    """Each is the same in any batch, the first is that of a single prompt, and the prompt is computed once."""
    prompt = [2 + k % 7 for k in range(30)]
    rules = Rules(6, sampling=Sampling(1.5, None, 3, independent=True))
    speaker = make_speaker(rule)
    together = decode(speaker, [prompt] * 20, rules, most_rows=8)
    assert together == decode(make_speaker(rule), [prompt] * 20, rules, most_rows=20)
    assert together[:1] == decode(make_speaker(rule), [prompt], Rules(6, sampling=Sampling(1.5, None, 3)))
    assert len({tuple(one) for one in together}) > 15
    assert [columns for _, columns in speaker.passes if columns > 1] == [29]


def test_independent_samples_follow_the_distribution(make_speaker: Speak) -> None:
    """The share of each first token is its probability."""
    rules = Rules(1, sampling=Sampling(1.0, None, 0, independent=True))
    found = [one[0] for one in decode(make_speaker(rule), [[2, 3]] * 4000, rules)]
    shares = torch.bincount(torch.tensor(found), minlength=VOCABULARY) / len(found)
    assert float((shares - rule((2, 3)).softmax(0)).abs().max()) < 0.03
