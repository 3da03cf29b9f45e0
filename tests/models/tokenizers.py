"""Tiny tokenizers of every kind that models come with, made without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = ["Q", "A", "Question", "Answer", "Sure", "No", "Hi", "ello", "the", "is", "tell", "me", "it", "a", "b"]
NAMES: dict[str, str] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_PRINTED = [chr(k) for k in range(33, 127)]


def _merged(letters: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A BPE vocabulary of letters in which each of the words is one token."""
    pieces = [*SPECIAL, *letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        for k in range(2, len(word) + 1):
            if word[:k] not in pieces:
                pieces.append(word[:k])
                merges.append((word[: k - 1], word[k - 1]))
    return {piece: k for k, piece in enumerate(pieces)}, merges


def byte_level(prefix: bool = False) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _merged(letters, [*("Ġ" + word for word in WORDS), *WORDS])
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    return raw


def _blank_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return _merged(["▁", "\n", *_PRINTED], ["▁" + word for word in WORDS] + WORDS)


def metaspace(scheme: str, split: bool = True) -> Tokenizer:
    """As SentencePiece BPE: a blank is the letter `▁`, and before a text stands one, depending on the scheme."""
    vocabulary, merges = _blank_pieces()
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return raw


def prepend() -> Tokenizer:
    """As Llama 2 and the first Mistral: a normaliser puts a blank before every text."""
    vocabulary, merges = _blank_pieces()
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return raw


def across_words() -> Tokenizer:
    """No pre-tokeniser: a token may span the border of two words (`:▁`)."""
    vocabulary, merges = _blank_pieces()
    vocabulary[":▁"] = len(vocabulary)
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "▁"), *merges], unk_token="<unk>"))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return raw


def word_piece() -> Tokenizer:
    """As BERT."""
    words = [word.lower() for word in WORDS]
    letters = [c for c in _PRINTED if not c.isupper()]
    pieces = dict.fromkeys([*SPECIAL, *letters, *("##" + c for c in letters), *words])
    raw = Tokenizer(models.WordPiece(vocab={p: k for k, p in enumerate(pieces)}, unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return raw


def unigram() -> Tokenizer:
    """As T5 and XLNet."""
    pieces = [*SPECIAL, "▁", "\n", *_PRINTED, *("▁" + word for word in WORDS)]
    raw = Tokenizer(models.Unigram([(p, -2.0 if len(p) > 2 else -5.0) for p in pieces], unk_id=3, byte_fallback=False))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return raw


def made(raw: Tokenizer, single: str | None = None, **names: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that adds special tokens as in `single`, such as "<s> $A </s>"."""
    raw.add_special_tokens(SPECIAL)
    if single:
        template = processors.TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        # As in the tokenizer of Llama 3.
        byte_level = isinstance(raw.pre_tokenizer, pre_tokenizers.ByteLevel)
        raw.post_processor = (
            processors.Sequence([processors.ByteLevel(trim_offsets=False), template]) if byte_level else template
        )
    given = {name: token for name, token in (NAMES | names).items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **given)


def _processed(processor: Any) -> PreTrainedTokenizerFast:
    found = made(byte_level())
    found.backend_tokenizer.post_processor = processor
    return found


def _with(change: Callable[[Any], object], **given: Any) -> PreTrainedTokenizerFast:
    found = made(byte_level(), "<s> $A", **given)
    change(found)
    return found


def _stripping() -> PreTrainedTokenizerFast:
    """Chat tokens that swallow the blanks beside them, as in Phi-3."""
    found = made(metaspace("first"), "<s> $A")
    roles = [AddedToken(f"<|{role}|>", rstrip=True, special=True) for role in ("user", "assistant")]
    found.add_tokens([*roles, AddedToken("<|mask|>", lstrip=True, special=True)])
    found.chat_template = CHAT
    return found


def _chat() -> PreTrainedTokenizerFast:
    found = made(byte_level(), "<s> $A")
    found.add_tokens([AddedToken(f"<|{role}|>", special=True) for role in ("user", "assistant")])
    found.chat_template = CHAT
    return found


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": lambda: made(byte_level()),
    "byte_level_prefix": lambda: made(byte_level(True)),
    "metaspace_always": lambda: made(metaspace("always")),
    "metaspace_first": lambda: made(metaspace("first")),
    "metaspace_never": lambda: made(metaspace("never")),
    "metaspace_whole": lambda: made(metaspace("first", split=False)),
    "prepend": lambda: made(prepend()),
    "prepend_bos": lambda: made(prepend(), "<s> $A"),
    "across_words": lambda: made(across_words()),
    "word_piece": lambda: made(word_piece()),
    "unigram": lambda: made(unigram()),
    "adds_bos": lambda: made(byte_level(), "<s> $A"),
    "adds_eos": lambda: made(byte_level(), "$A </s>"),
    "adds_both": lambda: made(byte_level(), "<s> $A </s>"),
    "adds_both_metaspace": lambda: made(metaspace("first"), "<s> $A </s>"),
    "adds_two_ends": lambda: made(byte_level(), "<s> $A </s> </s>"),
    "bert_processor": lambda: _processed(processors.BertProcessing(("</s>", 2), ("<s>", 1))),
    "roberta_processor": lambda: _processed(processors.RobertaProcessing(("</s>", 2), ("<s>", 1))),
    "bos_is_eos": lambda: made(byte_level(), "</s> $A", bos_token="</s>"),
    "no_bos": lambda: made(byte_level(), bos_token=None),
    "no_pad": lambda: made(byte_level(), pad_token=None),
    "no_eos": lambda: made(byte_level(), eos_token=None),
    "no_special": lambda: made(byte_level(), bos_token=None, eos_token=None, pad_token=None),
    "pad_beyond": lambda: _with(lambda t: t.add_special_tokens({"pad_token": "[PAD]"}), pad_token=None),
    "image_beyond": lambda: _with(lambda t: t.add_special_tokens({"additional_special_tokens": ["<image>"]})),
    "left_padding": lambda: made(byte_level(), "<s> $A", padding_side="left"),
    "left_truncation": lambda: made(byte_level(), truncation_side="left", model_max_length=4),
    "chat": _chat,
    "chat_strips": _stripping,
}


def save(kind: str, folder: Path, **config: Any) -> Path:
    """Write a tokenizer and a random GPT-2 that has an embedding for each of its tokens, except those beyond."""
    tokenizer = KINDS[kind]()
    torch.manual_seed(0)
    beyond = ["[PAD]", "<image>"]
    size = len(set(tokenizer.get_vocab()) - set(beyond))
    settings = {
        "vocab_size": size, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256, "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.3,
    }  # fmt: skip
    GPT2LMHeadModel(GPT2Config(**(settings | config))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
