"""Prompt sets and plain texts: read from a user's file, the hub or the lab, checked, and known by their digest.

A prompt set is declared as YAML in `tasks/prompts/` (see `SetSpec`) or is simply a JSONL, CSV or Parquet file with
the columns `prompt` and, for a forget set, `harmful` and `harmless` (each a string or a list of strings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from wpn_bench.core.files import digest_of

WORST_CASE = "worst_case"  # reserved set name: the worst answer to each prompt under any attack
Role = Literal["forget", "validation", "in_domain", "ood", "benign", "retain", "heldout"]
Kind = Literal["question", "continuation", "text"]


@dataclass(frozen=True)
class Item:
    """One prompt. `harmful` and `harmless` are reference responses (training, calibration); either may be empty.

    The last three are set by attacks: `context` is text before the rendered prompt (demonstrations), `answer_prefix` is
    words with which the response is made to begin, `original` is the prompt before the attack.
    """

    id: str
    prompt: str
    kind: str = "question"
    harmful: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()
    context: str = ""
    answer_prefix: str = ""
    original: str = ""

    @property
    def request(self) -> str:
        """The prompt before any attack."""
        return self.original or self.prompt


@dataclass(frozen=True)
class PromptSet:
    """Named prompts. `source` says where they come from (never a home folder)."""

    name: str
    role: Role
    items: tuple[Item, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of([asdict(i) for i in self.items])

    def head(self, limit: int | None) -> PromptSet:
        """The first `limit` items (None: all)."""
        return self if limit is None else replace(self, items=self.items[:limit])


@dataclass(frozen=True)
class TextSet:
    """Named plain texts (retain data, held-out text)."""

    name: str
    role: Role
    texts: tuple[str, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of(list(self.texts))


def normalise(prompt: str) -> str:
    """The form in which equal prompts are compared: without case, with single spaces."""
    return " ".join(prompt.casefold().split())


def item_id(prompt: str) -> str:
    """The id of a prompt, 12 hexadecimal digits; the same in every run."""
    return digest_of(normalise(prompt))[:12]
