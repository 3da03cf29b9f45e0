"""A GGUF file as a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.architectures import save, write_gguf
from wpn_bench import models
from wpn_bench.errors import UserError
from wpn_bench.models import gguf as module


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WPN_BENCH_GGUF", str(tmp_path / "cache"))
    module._converted.cache_clear()
    return save("llama", tmp_path / "llama")


def test_a_gguf_file_is_the_model_that_it_was_made_from(original: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (folder := tmp_path / "download").mkdir()
    write_gguf(original, file := folder / "tiny.gguf")
    found = models.resolve(str(file))
    assert models.resolve(str(folder)).path == found.path  # the only GGUF file in a folder
    ours, tokenizer = models.load(found.path)
    theirs, expected = models.load(original)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert tokenizer("Hi you")["input_ids"] == expected("Hi you")["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")
    assert models.context_length_of(found.path) == 128


@pytest.mark.parametrize("text", [b"", b"GGUF", b"not a model at all"])
def test_a_damaged_file_is_refused_in_one_line(original: Path, tmp_path: Path, text: bytes) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(text)
    with pytest.raises(UserError, match=r"transformers cannot read bad\.gguf"):
        models.resolve(str(tmp_path / "bad.gguf"))


def test_a_missing_package_is_named(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package that reads it is not installed") as caught:
        models.resolve(str(tmp_path / "some.gguf"))
    assert "wpn-bench[gguf]" in caught.value.hint


def test_a_part_of_a_split_file_names_the_tool_that_joins_it(tmp_path: Path) -> None:
    for k in (1, 2):
        (tmp_path / f"m-0000{k}-of-00002.gguf").write_bytes(b"GGUF")
    for asked in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        with pytest.raises(UserError) as error:
            models.resolve(str(asked))
        assert "llama-gguf-split --merge" in str(error.value.hint)


def test_several_files_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("a-Q4.gguf", "a-Q8.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"2 GGUF files \(a-Q4.gguf, a-Q8.gguf\)"):
        models.resolve(str(tmp_path))
