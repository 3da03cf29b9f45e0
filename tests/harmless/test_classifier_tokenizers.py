"""A text classifier works with every tokenizer that AutoTokenizer reads, not only with a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.models.tokenizers import KINDS
from wpn_bench.errors import UserError
from wpn_bench.harmless.judges.classifier import ClassifierConfig, ClassifierJudge
from wpn_bench.models import tokenizer

TEXTS = ["you fool.", "nice hat.", "you are a fool. " * 200, ""]


def vocab_txt(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "you", "fool", "nice", "hat", "."]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')


def spiece_model(folder: Path) -> None:
    import sentencepiece as spm

    lines = ["you fool .", "nice hat .", "the cat sat on a mat", "do not shout at me"] * 50
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spiece"), vocab_size=40, model_type="unigram",
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece="<pad>", unk_piece="<unk>", bos_piece="[CLS]",
        eos_piece="[SEP]", user_defined_symbols=["[MASK]"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')


def vocab_and_merges(folder: Path) -> None:
    state = json.loads(KINDS["byte_level"]().backend_tokenizer.to_str())["model"]
    words = state["vocab"] | {"<mask>": len(state["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in state["merges"]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.BertConfig(vocab_size=400).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"no SentencePiece model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    monkeypatch.setattr(tokenizer, "_installed", lambda name: name != "protobuf")
    with pytest.raises(UserError, match="is a SentencePiece model, and protobuf is not installed") as e:
        tokenizer.read_tokenizer(tmp_path)
    assert e.value.hint == "pip install sentencepiece protobuf"


@pytest.mark.parametrize("write", [vocab_txt, spiece_model, vocab_and_merges])
def test_a_classifier_is_read_without_tokenizer_json(write: Callable[[Path], None], tmp_path: Path) -> None:
    torch.manual_seed(0)
    write(tmp_path)
    config = hf.BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        initializer_range=0.5,
    )  # fmt: skip
    hf.BertForSequenceClassification(config).eval().save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    judge = ClassifierJudge(str(tmp_path), "cpu", ClassifierConfig(label="LABEL_1"))
    assert len(judge.digest()) == 64
    found = judge.score(TEXTS)
    own: Any = hf.AutoTokenizer.from_pretrained(tmp_path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for text, score in zip(TEXTS[:2], found, strict=False):
        with torch.no_grad():
            expected = model(**own(text, return_tensors="pt")).logits.softmax(-1)[0, 1]
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert found[0] != found[1]
    assert None not in found
