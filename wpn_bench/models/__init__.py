"""Find and load models and their tokenizers, and compute their sizes without loading them."""

from __future__ import annotations

from wpn_bench.models.loading import SHARD, let_go, load, load_fresh, make_room, pick_device, reading
from wpn_bench.models.locate import (
    LAB,
    LAB_ORACLE,
    ModelRef,
    base_of_adapter,
    check_permitted,
    commit_of,
    lies_here,
    resolve,
    settings_folder,
    split_revision,
    unwanted,
)
from wpn_bench.models.sizes import (
    context_length,
    context_length_of,
    context_of,
    weights_bytes,
    width_of,
    working_memory,
)
from wpn_bench.models.tokenizer import load_tokenizer

__all__ = [
    "LAB",
    "LAB_ORACLE",
    "SHARD",
    "ModelRef",
    "base_of_adapter",
    "check_permitted",
    "commit_of",
    "context_length",
    "context_length_of",
    "context_of",
    "let_go",
    "lies_here",
    "load",
    "load_fresh",
    "load_tokenizer",
    "make_room",
    "pick_device",
    "reading",
    "resolve",
    "settings_folder",
    "split_revision",
    "unwanted",
    "weights_bytes",
    "width_of",
    "working_memory",
]
