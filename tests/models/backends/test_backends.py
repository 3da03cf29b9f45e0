"""How a folder finds its backend, and that the local one asks the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from wpn_bench import models
from wpn_bench.engine.generation import generate
from wpn_bench.engine.likelihood import loglikelihoods
from wpn_bench.engine.local_backend import LocalBackend
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.models import backends
from wpn_bench.models.backends import Backend, Decoding, Response, open_backend, scoring_tokenizer

PROMPTS = ["What did the baker say?", "The old miller", ""]
DECODING = Decoding(max_new_tokens=5)


class Endpoint(Backend):
    """A backend as one for a remote endpoint would be: responses, and no log-likelihoods."""

    context_length = 4096

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def open(cls, folder: Path, device: str, dtype: str, offload: str) -> Self:
        return cls(json.loads((folder / "backend.json").read_text())["model"])

    def generate(self, prompts: Sequence[str], decoding: Decoding, advance: Any = None) -> list[Response]:
        return [Response(f"{self.name}: {prompt}", 1) for prompt in prompts]

    def loglikelihoods(self, pairs: Any, **options: Any) -> None:
        return None

    def digest(self) -> str:
        return self.name


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(backends.BACKENDS._parts, "endpoint", f"{__name__}:Endpoint")
    (tmp_path / "backend.json").write_text(json.dumps({"backend": "endpoint", "model": "m"}))
    return tmp_path


def test_a_folder_with_a_model_is_local(small_lm: Path) -> None:
    backend = open_backend(small_lm)
    assert isinstance(backend, LocalBackend)
    model, tokenizer = models.load(small_lm)
    assert backend.model is model  # the same that stays in memory for other stages
    assert scoring_tokenizer(backend) is backend.tokenizer
    assert backend.context_length == models.context_length(model)
    told: list[int] = []
    assert backend.generate(PROMPTS, DECODING, told.append) == generate(model, tokenizer, PROMPTS, DECODING)
    assert sum(told) == len(PROMPTS)
    pairs = [([1, 2, 3], [4, 5]), ([7], [8])]
    expected = loglikelihoods(model, pairs, max_length=backend.context_length)
    assert backend.loglikelihoods(pairs) == expected
    assert [score for score, _ in backend.loglikelihoods(pairs, pass_tokens=1)] == pytest.approx(
        [score for score, _ in expected], rel=1e-5
    )


def test_a_local_model_has_the_digest_of_its_files(small_lm: Path) -> None:
    assert open_backend(small_lm).digest() == models.resolve(str(small_lm)).digest
    with pytest.raises(ValueError, match="only in memory"):
        LocalBackend(*models.load(small_lm)).digest()


def test_another_backend_is_named_in_the_folder(endpoint: Path) -> None:
    backend = open_backend(endpoint)
    assert [one.text for one in backend.generate(["x"], DECODING)] == ["m: x"]
    assert backend.loglikelihoods([([1], [2])]) is None
    with pytest.raises(JobFailed, match="gives no log-likelihoods"):
        scoring_tokenizer(backend)


@pytest.mark.parametrize(
    ("content", "problem"),
    [('{"backend": "lokal"}', "unknown backend 'lokal'"), ("{}", "names no backend"), ("[", "not valid JSON")],
)
def test_a_folder_that_names_no_backend(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "backend.json").write_text(content)
    with pytest.raises(UserError, match=problem):
        open_backend(tmp_path)
