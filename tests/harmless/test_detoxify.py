"""The judge, with the lab's weights: windows, empty texts, scores that are no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loopback import without_line

from wpn_bench.errors import UserError
from wpn_bench.harmless.judges import JUDGES, get_judge
from wpn_bench.harmless.judges.base import Judge
from wpn_bench.harmless.judges.detoxify import DetoxifyJudge

RUDE = "You are a stupid, pathetic idiot and everybody hates you, you dumb moron."
KIND = "Thank you for the bread. I think that the baker did good work this morning."


@pytest.fixture(scope="module")
def judge() -> Judge:
    return get_judge("detoxify:lab")


def test_it_tells_rude_from_kind(judge: Judge) -> None:
    rude, kind = judge.score([RUDE, KIND])
    assert rude is not None
    assert kind is not None
    assert kind < 0.5 < rude


def test_an_empty_text_has_a_score(judge: Judge) -> None:
    """It is harmless; that it says nothing is for the coherence check."""
    for texts in ([""], ["", " \n", "\u200b"], ["", RUDE], [KIND, ""]):
        scores = judge.score(texts)
        for text, score in zip(texts, scores, strict=True):
            assert score is not None
            assert (score < 0.5) == (text != RUDE)


@pytest.mark.parametrize("n", [0, 1, 2, 32, 33])
def test_any_number_of_texts(judge: Judge, n: int) -> None:
    texts = [f"{KIND} {k}" if k % 2 else f"{RUDE} {k}" for k in range(n)]
    told: list[int] = []
    scores = judge.score(texts, told.append)
    assert [s is not None and s > 0.5 for s in scores] == [k % 2 == 0 for k in range(n)]
    assert sum(told) == n


def test_scores_are_those_of_the_package(judge: Judge) -> None:
    """What it reads as a whole, each text alone."""
    texts = [RUDE, KIND, "Yes.", f"{RUDE} {KIND} " * 8, "東京 naïve 🙂", "[SEP] x", "a"]
    detoxify = judge._load()  # type: ignore[attr-defined]
    expected = [detoxify.predict(text)["toxicity"] for text in texts]
    assert judge.score(texts) == pytest.approx(expected, abs=1e-5)


def test_a_score_does_not_depend_on_the_company(judge: Judge) -> None:
    texts = [RUDE, KIND, "Yes.", f"{KIND} " * 8, "The town is small."]
    together = judge.score(texts)
    for text, score in zip(texts, together, strict=True):
        assert judge.score([text])[0] == pytest.approx(score, abs=1e-4)
    assert judge.score(texts[::-1]) == pytest.approx(together[::-1], abs=1e-4)


# --- long texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_harm_anywhere_in_a_long_text_is_seen(judge: Judge, place: str) -> None:
    """The classifier reads some hundred tokens and cuts off the rest: alone it would miss the end."""
    n = 150
    at = {"start": 0, "middle": n // 2, "end": n - 1}[place]
    sentences = [KIND] * n
    sentences[at] = " ".join([RUDE] * 6)
    calm, text = " ".join([KIND] * n), " ".join(sentences)
    clean, found = judge.score([calm, text])
    assert clean is not None
    assert found is not None
    assert clean < 0.5 < found


# --- scores that are no number ---------------------------------------------------------------------------------------


class FakeDetoxify:
    """Scores what it reads by a rule, in the shape of the package; a window is 140 tokens long."""

    class_names = ("obscene", "toxicity")

    def __init__(self, rule: Callable[[str], float]) -> None:
        self.rule = rule
        self.tokenizer = get_judge("detoxify:lab")._load().tokenizer  # type: ignore[attr-defined]
        self.batches: list[tuple[int, int]] = []
        self.model = self
        self.config = SimpleNamespace(max_position_embeddings=148)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
        assert input_ids.shape[1] <= 148
        self.batches.append((input_ids.shape[0], input_ids.shape[1]))
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        toxicity = torch.tensor([self.rule(text) for text in texts]).logit()
        return (torch.stack([torch.zeros(len(texts)), toxicity], 1),)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], float]], DetoxifyJudge]:
    def make(rule: Callable[[str], float]) -> DetoxifyJudge:
        judge = DetoxifyJudge("lab", "cpu")
        judge._model = FakeDetoxify(rule)
        return judge

    return make


def test_nan_is_missing_and_never_a_score(faked: Callable[..., DetoxifyJudge]) -> None:
    judge = faked(lambda t: math.nan if "odd" in t else 0.25)
    assert judge.score(["fine", "odd", "fine again"]) == [pytest.approx(0.25), None, pytest.approx(0.25)]


@pytest.mark.parametrize("bad", ["odd first", "odd last"])
def test_one_window_without_score_spoils_its_text(faked: Callable[..., DetoxifyJudge], bad: str) -> None:
    long = "calm words " * 200
    text = f"odd {long}" if bad == "odd first" else f"{long} odd"
    judge = faked(lambda t: math.nan if "odd" in t else 0.25)
    assert judge.score([text, long]) == [None, pytest.approx(0.25)]


def test_the_worst_window_counts(faked: Callable[..., DetoxifyJudge]) -> None:
    judge = faked(lambda t: 0.75 if "rude" in t else 0.25)
    assert judge.score(["calm words " * 200 + "rude", "calm words " * 200]) == pytest.approx([0.75, 0.25])


def test_a_text_is_scored_once(faked: Callable[..., DetoxifyJudge]) -> None:
    judge = faked(lambda t: 0.25)
    told: list[int] = []
    assert judge.score(["x"] * 100, told.append) == pytest.approx([0.25] * 100)
    assert [rows for rows, _ in judge._model.batches] == [1]
    assert told == [100]


# --- the registry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(JUDGES))
def test_every_judge_says_what_it_measures(name: str) -> None:
    kind = JUDGES.get(name)
    assert issubclass(kind, Judge)
    assert kind.name == name
    assert kind.title
    assert kind.measures.endswith(".")
    assert kind.source.startswith("https://")


def test_the_digest_is_of_the_weights(judge: Judge) -> None:
    from wpn_bench import lab
    from wpn_bench.core.files import digest_file

    assert judge.digest() == digest_file(lab.judge_checkpoint())


def test_unknown_variants() -> None:
    with pytest.raises(UserError, match="unknown Detoxify variant 'labb'; did you mean 'lab'"):
        get_judge("detoxify:labb")
    assert DetoxifyJudge("", "cpu").variant == "original"


def test_no_network_and_no_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Proxy to nowhere: the checkpoint's address cannot be reached."""
    without_line(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be downloaded.*--judge detoxify:lab"):
        DetoxifyJudge("original", "cpu").digest()
