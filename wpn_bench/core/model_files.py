"""Decide by their names which files of a folder belong to a model."""

from __future__ import annotations

from pathlib import Path

from wpn_bench.core.files import Signature, folder_signature

WEIGHT_SUFFIXES = (".safetensors", ".bin")
# Files that determine a model. Other files (a log, README.md, trainer_state.json, metrics) may change during a run.
_MODEL_SUFFIXES = (".model", ".jinja", ".tiktoken", *WEIGHT_SUFFIXES)
_MODEL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.json", "normalizer.json",
    "preprocessor_config.json", "processor_config.json", "quantize_config.json", "quant_config.json",
    "adapter_config.json", "encoder.json", "vocab.bpe", "dict.txt", "emoji.json", "tekken.json",
}  # fmt: skip
_NOT_WEIGHTS = {"training_args.bin", "optimizer.bin", "scheduler.bin", "random_states.bin"}


def makes_model(name: str) -> bool:
    """Return whether a file of this name holds a model's weights, settings or tokenizer."""
    known = name in _MODEL_FILES or name.endswith((*_MODEL_SUFFIXES, ".index.json"))
    return known and name not in _NOT_WEIGHTS


def makes_tokenizer(name: str) -> bool:
    """Return whether a file of this name holds the vocabulary of a tokenizer."""
    known = name in {"tokenizer.json", "vocab.json", "vocab.txt", "vocab.bpe", "dict.txt", "tekken.json"}
    return known or name.endswith((".model", ".tiktoken"))


def model_signature(folder: Path) -> Signature:
    """Return the name, size in bytes and modification time in ns of each model file and each of the model's code files."""
    return tuple(one for one in folder_signature(folder) if makes_model(one[0]) or one[0].endswith(".py"))
