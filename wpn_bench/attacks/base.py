"""The base class of prompt attacks."""

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
    """The data that a prompt attack may use.

    Attributes:
        template: The template that the model was trained with.
        demonstrations: Forget set items, for attacks that show harmful responses.
        seed: Seed of all random choices.
        own: Attacks from the user's files, by name (see `own_attacks`).
    """

    template: Template
    demonstrations: Sequence[Item] = ()
    seed: int = 0
    own: Mapping[str, Attack] = field(default_factory=dict)

    def random_for(self, item: Item, name: str) -> random.Random:
        """Return a random generator that does not depend on the position of the item in its set.

        Args:
            item: The prompt.
            name: Name of the attack.

        Returns:
            A generator seeded with the context's seed, the name and the item's id.
        """
        return random.Random(digest_of([self.seed, name, item.id]))


class Attack(ABC):
    """Base class of prompt attacks.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        file: The file that a user's own attack was read from, as shown in results; None for a built-in attack.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    file: str | None = None

    @abstractmethod
    def apply(self, item: Item, context: AttackContext) -> Item:
        """Return the attacked prompt. The result must be deterministic.

        Args:
            item: The prompt.
            context: Template, demonstrations and seed.

        Returns:
            The changed item. It keeps its id, so that its answers are paired with those to the plain prompt.
        """
