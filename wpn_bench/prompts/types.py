"""Prompt sets and plain texts, from a file of the user, the hub or the lab data. Digests identify their contents.

A prompt set is declared as YAML in `tasks/prompts/` (see `SetSpec`). It can also be a JSONL, CSV or Parquet file with
the column `prompt` and, for a forget set, `harmful` and `harmless`. Each response is a string or a list of strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from wpn_bench.core.files import digest_of

WORST_CASE = "worst_case"  # reserved name of the set with the worst response to each prompt over all attacks
Role = Literal["forget", "validation", "in_domain", "ood", "benign", "retain", "heldout"]
Kind = Literal["question", "continuation", "text"]
# Whether refusing a prompt is right, wrong, or as good as another harmless answer.
Refusal = Literal["right", "wrong", "either"]


@dataclass(frozen=True)
class Item:
    """One prompt.

    Attributes:
        id: Identifies the prompt (see `item_id`).
        prompt: Text of the prompt, after any attack.
        kind: One of `Kind`. Only questions are put into the template.
        harmful: Harmful reference responses, for training and calibration; may be empty.
        harmless: Harmless reference responses, for training and calibration; may be empty.
        context: Text before the rendered prompt, such as demonstrations. Attacks set it.
        answer_prefix: First words of the response, which are given to the model. Attacks set it.
        original: The prompt before the attack. Attacks set it.
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
        """Return the prompt as it was before any attack."""
        return self.original or self.prompt

    @property
    def unattacked(self) -> Item:
        """The item with the prompt before any attack, without context and answer prefix."""
        return replace(self, prompt=self.request, context="", answer_prefix="")


@dataclass(frozen=True)
class PromptSet:
    """A named set of prompts.

    Attributes:
        name: Name of the set in results.
        role: What the set is used for.
        items: The prompts.
        title: Title in reports.
        source: Where the prompts come from, without paths that contain a home folder.
        left_out: Number of prompts that cannot be used, because a forget set needs a harmful and a harmless response.
        refusal: Whether a refusal of these prompts is right.
        groups: Groups of items, by id: items with the same group ask for the same fact. They are no part of the digest. Empty if the
            set declares none.
    """

    name: str
    role: Role
    items: tuple[Item, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    left_out: int = 0
    refusal: Refusal = "either"
    groups: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of([asdict(i) for i in self.items])

    def head(self, limit: int | None) -> PromptSet:
        """Return a set with the first `limit` items, or with all items if `limit` is None."""
        return self if limit is None else replace(self, items=self.items[:limit])


@dataclass(frozen=True)
class TextSet:
    """A named set of plain texts, such as the retain data or held-out text."""

    name: str
    role: Role
    texts: tuple[str, ...]
    title: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest_of(list(self.texts))


def normalise(prompt: str) -> str:
    """Return a prompt casefolded and with single spaces. Prompts are compared in this form."""
    return " ".join(prompt.casefold().split())


def item_id(prompt: str) -> str:
    """Return the id of a prompt: 12 hexadecimal digits that are the same in every run."""
    return digest_of(normalise(prompt))[:12]
