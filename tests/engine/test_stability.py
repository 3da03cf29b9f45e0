"""Choices, greedy tokens and verdicts do not depend on how the engine divides its work (see benchmarks/stability.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from wpn_bench.engine import budget, classify, likelihood
from wpn_bench.engine.decode import Rules, decode
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.jobs.journal import Journal, Shard, use_journal
from wpn_bench.lab_training.judge import load_judge

from .conftest import WORDS, random_model

T = TypeVar("T")
SETTINGS = [(64, 1, 1), (16_384, 1, 1), (1024, 4, 1), (1024, 2, 3), (256, 4, 4)]  # tokens, threads, shards
RNG = np.random.default_rng(0)


def some_tokens(least: int, most: int) -> list[int]:
    return [int(token) for token in RNG.integers(2, WORDS, RNG.integers(least, most))]


CONTEXTS = [some_tokens(1, 24) for _ in range(60)]
PAIRS = [(context, some_tokens(1, 8)) for context in CONTEXTS for _ in range(4)]
TEXTS = [
    f"{who} is {what}" for who in ("The baker", "You", "Nobody") for what in ("an idiot", "kind", "late", "a " * 99)
]


@contextmanager
def divided(tokens: int, threads: int) -> Iterator[None]:
    before = budget.CPU_TOKENS, torch.get_num_threads()
    budget.CPU_TOKENS = tokens
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        budget.CPU_TOKENS = before[0]
        torch.set_num_threads(before[1])


def in_shards(work: Callable[[], T], shards: int, folder: Path) -> T:
    """As `jobs` divides a job: each shard computes its part into the journal, and the last pass reads all of it."""
    for index in range(shards if shards > 1 else 0):
        with use_journal(Journal(folder, Shard(index, shards))):
            work()
    with use_journal(Journal(folder)):
        return work()


def choices(scores: list[tuple[float, bool]]) -> list[int]:
    values = np.array([score for score, _ in scores]).reshape(len(CONTEXTS), 4)
    return [int(choice) for choice in values.argmax(1)]


@pytest.mark.parametrize(("tokens", "threads", "shards"), SETTINGS)
@pytest.mark.parametrize("shape", ["opt", "llama"])
def test_choices_and_answers(shape: str, tokens: int, threads: int, shards: int, tmp_path: Path) -> None:
    model = random_model(shape)
    scores = loglikelihoods(model, PAIRS, max_length=40)
    answers = decode(model, CONTEXTS, Rules(8))
    with divided(tokens, threads):
        found = in_shards(lambda: loglikelihoods(model, PAIRS, max_length=40), shards, tmp_path / "scores")
        rows = max(1, tokens // 8)
        said = in_shards(lambda: decode(model, CONTEXTS, Rules(8), most_rows=rows), shards, tmp_path / "answers")
    assert choices(found) == choices(scores)
    assert [best for _, best in found] == [best for _, best in scores]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in scores], abs=1e-4)
    assert said == answers
    assert len({tuple(answer) for answer in said}) > 20


def test_verdicts(tmp_path: Path) -> None:
    judge = load_judge()
    classifier = classify.Classifier.of(judge.model, judge.tokenizer, lambda logits: logits.sigmoid()[:, 0])
    expected = [score < 0.5 for score in classify.scores(classifier, TEXTS)]
    assert len(set(expected)) == 2
    for tokens, threads, shards in SETTINGS:
        with divided(tokens, threads):
            work = lambda: classify.scores(classifier, TEXTS)  # noqa: E731
            assert [score < 0.5 for score in in_shards(work, shards, tmp_path / f"{tokens}-{shards}")] == expected


def test_a_result_that_depends_on_the_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of a mask that lets a tree see its neighbours in the row changes choices."""
    model = random_model("opt")
    before = choices(loglikelihoods(model, PAIRS, max_length=40))
    inner = likelihood.additive
    monkeypatch.setattr(likelihood, "additive", lambda visible, dtype: inner(torch.ones_like(visible).tril(), dtype))
    assert choices(loglikelihoods(model, PAIRS, max_length=40)) != before


def test_half_precision_is_another_matter() -> None:
    """In bfloat16, log-likelihoods differ by more than choices between near ties bear."""
    model: Any = random_model("opt")
    scores = loglikelihoods(model, PAIRS, max_length=40)
    half = loglikelihoods(model.bfloat16(), PAIRS, max_length=40)
    assert max(abs(a - b) for (a, _), (b, _) in zip(scores, half, strict=True)) > 1e-2
