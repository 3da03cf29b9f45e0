"""What an attack is, and how to find one by name."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from wpn_bench.core.files import digest_of
from wpn_bench.prompts import Item, Template

RelearnKind = Literal["harmful", "benign"]  # text that relearning fine-tunes on


@dataclass(frozen=True)
class AttackContext:
    """What an attack may use.

    Attributes:
        template: The template that the model was trained with.
        demonstrations: Items of the forget set with harmful responses.
        seed: Seed of all random choices.
        own: Attacks from the user's files, by name (see `own_attacks`).
    """

    template: Template
    demonstrations: Sequence[Item] = ()
    seed: int = 0
    own: Mapping[str, Attack] = field(default_factory=dict)

    def random_for(self, item: Item, name: str) -> random.Random:
        """A generator that depends on the seed, the attack and the item, but not on the item's place in the set."""
        return random.Random(digest_of([self.seed, name, item.id]))


class Attack(ABC):
    """Changes one prompt. The item keeps its id, so that answers pair with those to the plain prompt."""

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    file: str | None = None  # where an attack of a user's own was read, as it may be shown

    @abstractmethod
    def apply(self, item: Item, context: AttackContext) -> Item:
        """The attacked prompt; the same for the same item, context and attack."""
