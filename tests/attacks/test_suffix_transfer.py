"""Suffixes that are asked of another model: those that were found, and those that its tokenizer cannot write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from wpn_bench.attacks.suffix_slots import with_suffix
from wpn_bench.attacks.suffix_transfer import run_transfer_stage, suffix_of
from wpn_bench.errors import JobFailed
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import Item
from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

TEMPLATE = "Q: {prompt} A:"
ITEM = Item("a", "one two")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A folder with a tokenizer that knows three words, and separates them by spaces."""
    vocab = {word: k for k, word in enumerate(("<unk>", "<end>", "one", "two", "three", "Q", ":", "A"))}
    raw = Tokenizer(WordLevel(vocab, "<unk>"))
    raw.pre_tokenizer = Whitespace()
    folder = tmp_path / "words"
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "opt", "vocab_size": 8}))
    return folder


def ask(folder: Path, suffixes: list[str], model: Path, unfit: dict[str, str] | None = None, **params: object) -> Path:
    """Run the stage on prompts with these suffixes, whose ids are their positions."""
    searched, out = folder / "searched", folder / "out"
    searched.mkdir(parents=True)
    out.mkdir()
    items = [with_suffix(replace(ITEM, id=str(k)), suffix) for k, suffix in enumerate(suffixes)]
    write_rows(searched / ITEMS, [item_row(item) for item in items])
    (searched / "search.json").write_text(json.dumps({"unfit": unfit or {}}))
    needs = {"prompts": searched, "model": model}
    run_transfer_stage(
        StageContext({"template": TEMPLATE, **params}, needs, out, {}, lambda total, unit: lambda n: None)
    )
    return out


def test_the_suffix_of_an_item() -> None:
    assert suffix_of(with_suffix(ITEM, "! ! !")) == "! ! !"
    assert suffix_of(with_suffix(ITEM, " ")) == ""
    assert suffix_of(ITEM) == ""
    assert suffix_of(replace(ITEM, prompt="other", original="one two")) == ""  # another attack rewrote the prompt


def test_what_was_not_found_is_left_out_and_what_cannot_be_written_is_counted(words: Path, tmp_path: Path) -> None:
    out = ask(tmp_path, ["three", "", "one three", "four", "two"], words, {"4": "prompt too long"})
    assert [item.id for item in read_items(out)] == ["0", "2", "3"]
    told = json.loads((out / "transfer.json").read_text())
    assert told == {"prompts": 5, "empty": ["1"], "unfit": ["4"], "changed": ["3"]}


def test_any_suffix_can_be_written_in_bytes(tiny_model: Path, tmp_path: Path) -> None:
    out = ask(tmp_path, ["! ! !", "é ☃ \u200b x", "  two  spaces", "tab\tand\nline"], tiny_model)
    assert json.loads((out / "transfer.json").read_text())["changed"] == []
    assert len(read_items(out)) == 4


def test_an_endpoint_has_no_tokenizer(tmp_path: Path) -> None:
    out = ask(tmp_path, ["four"], tmp_path / "nowhere", endpoint=True)
    assert json.loads((out / "transfer.json").read_text())["changed"] == []


def test_a_search_that_found_nothing_has_nothing_to_ask(words: Path, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="no suffix for any of the 2 prompts"):
        ask(tmp_path, ["", "three"], words, {"1": "the tokenizer joins the suffix with its neighbours"})
