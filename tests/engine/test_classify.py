"""Scores of texts: in order, once a text, in short batches of similar length, whatever the chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wpn_bench.engine import classify
from wpn_bench.engine.classify import OVERLAP, Classifier, scores, windows
from wpn_bench.lab_training.judge import load_judge

WINDOW = 140


class Reader:
    """A classifier whose logit is the sum of the tokens it reads, and no number where it reads `odd`."""

    def __init__(self, odd: int) -> None:
        self.odd = odd
        self.config = SimpleNamespace(max_position_embeddings=WINDOW + 8)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.passes: list[tuple[int, int, int]] = []

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        assert input_ids.shape[1] <= WINDOW + 8
        self.passes.append((*input_ids.shape, int(attention_mask.sum())))
        found = (input_ids * attention_mask).sum(1).float()
        found[(input_ids == self.odd).any(1)] = math.nan
        return (found[:, None],)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_judge().tokenizer


@pytest.fixture(scope="module")
def make(tokenizer: Any) -> Callable[[], Classifier]:
    odd = tokenizer("odd", add_special_tokens=False)["input_ids"][0]
    return lambda: Classifier.of(Reader(odd), tokenizer, lambda logits: logits[:, 0])


def by_hand(classifier: Classifier, text: str) -> float:
    """Window by window, each alone."""
    found = [0.0]
    for part in windows(classifier, text):
        ids = torch.tensor([classifier.tokenizer(part)["input_ids"]])
        found.append(float(classifier.model(ids, torch.ones_like(ids))[0]))
    return math.nan if any(map(math.isnan, found)) else max(found)


WORDS = st.lists(st.sampled_from(["bread", "cake", "odd", "town", "é", "🙂", "\u200b", " "]), max_size=9).map(" ".join)
TEXTS = st.tuples(WORDS, st.sampled_from([1, 1, 1, 1, 40])).map(lambda t: (t[0] + " ") * t[1])


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, max_size=20), chunk=st.integers(1, 30), most_rows=st.none() | st.integers(1, 4))
def test_scores_are_those_of_each_text_alone(
    make: Callable[[], Classifier], texts: list[str], chunk: int, most_rows: int | None
) -> None:
    classifier, told = make(), []
    expected = [by_hand(classifier, text) for text in texts]
    classifier.model.passes.clear()
    found = scores(classifier, texts, told.append, chunk=chunk, most_rows=most_rows)
    assert found == pytest.approx(expected, nan_ok=True)
    assert sum(told) == len(texts)
    assert all(rows <= (most_rows or len(texts) * 9) for rows, _, _ in classifier.model.passes)


def test_short_memory_changes_nothing(make: Callable[[], Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"bread {'and cake ' * k}" for k in range(20)] + ["odd", "odd " * 300]
    expected = scores(make(), texts)
    classifier = make()
    read, tried = Reader.__call__, []

    def failing(self: Reader, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        tried.append(input_ids.numel())
        if tried[-1] > 200:
            raise RuntimeError("CUDA out of memory")
        return read(self, input_ids, attention_mask)

    monkeypatch.setattr(Reader, "__call__", failing)
    told: list[int] = []
    assert scores(classifier, texts, told.append) == pytest.approx(expected, nan_ok=True)
    assert sum(told) == len(texts)
    assert any(n > 200 for n in tried)


def test_little_padding_and_no_text_twice(make: Callable[[], Classifier]) -> None:
    texts = [f"{'bread ' * (k % 90)}{'cake ' * (k % 11)}" for k in range(1, 1981)]
    classifier = make()
    scores(classifier, texts)
    rows, room, real = (
        sum(column) for column in zip(*((n, n * w, t) for n, w, t in classifier.model.passes), strict=True)
    )
    assert rows == 989  # one of them is empty
    assert room < 1.1 * real


def test_tokens_of_one_chunk_at_a_time(make: Callable[[], Classifier], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts there are, no more than a chunk of them is ever tokenised."""
    sizes: list[int] = []
    rows = classify._rows
    monkeypatch.setattr(classify, "_rows", lambda c, texts: sizes.append(len(texts)) or rows(c, texts))
    scores(make(), [f"bread {k}" for k in range(250)], chunk=100)
    assert sizes == [100, 100, 50]


def test_the_score_is_a_function_of_the_logits(tokenizer: Any) -> None:
    class Three(Reader):
        def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
            return (torch.tensor([[1.0, 2.0, 3.0]]).repeat(len(input_ids), 1),)

    classifier = Classifier.of(Three(-1), tokenizer, lambda logits: logits.softmax(-1)[:, 2])
    assert scores(classifier, ["a", "b c"]) == pytest.approx([0.66524, 0.66524], abs=1e-4)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_windows_cover_the_text_and_overlap(make: Callable[[], Classifier]) -> None:
    classifier = make()
    text = " ".join(f"word{k} naïve" for k in range(500))
    parts = windows(classifier, text)
    assert len(parts) > 3
    at = 0
    for part in parts:
        assert len(classifier.tokenizer(part)["input_ids"]) <= WINDOW + 8
        begin = text.index(part)
        assert begin <= at  # nothing between two windows is left out
        at = begin + len(part)
    assert at == len(text)
    assert parts[0].startswith("word0 ")
    assert len(set(parts[0].split()) & set(parts[1].split())) > 5


@pytest.mark.parametrize("n", [1, 70, 138, 139, 140, 200, 216, 217, 1000])
def test_windows_of_every_length(make: Callable[[], Classifier], n: int) -> None:
    """Around the size of a window and of an overlap nothing is lost and nothing is too long."""
    classifier = make()
    parts = windows(classifier, "a " * n + "bread")
    assert parts[-1].endswith("bread")
    assert sum(len(part.split()) for part in parts) >= n + 1
    assert max(len(classifier.tokenizer(part)["input_ids"]) for part in parts) <= WINDOW + 8
    assert all(len(part.split()) > OVERLAP for part in parts) or len(parts) == 1
