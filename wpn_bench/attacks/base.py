"""The base class of prompt attacks."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import BaseModel

from wpn_bench.core.files import digest_of
from wpn_bench.prompts import Item, Template

RelearnKind = Literal["harmful", "benign"]  # kind of text on which the relearning attack fine-tunes


@dataclass(frozen=True)
class AttackContext:
    """The data that a prompt attack may use.

    Attributes:
        template: Template with which the model was trained.
        demonstrations: Items of the forget set, for attacks that show harmful responses.
        seed: Seed of all random choices.
        own: Attacks from the user's files, by name (see `own_attacks`).
        fits: Whether an item and the response fit into the context of the base model; None if that is unknown.
    """

    template: Template
    demonstrations: Sequence[Item] = ()
    seed: int = 0
    own: Mapping[str, Attack] = field(default_factory=dict)
    fits: Callable[[Item], bool] | None = None

    def random_for(self, item: Item, name: str) -> random.Random:
        """Return a random generator for an item that does not depend on the item's position in its set.

        Args:
            item: The prompt.
            name: Name of the attack.

        Returns:
            A generator seeded with the seed of the context, the name and the id of the item.
        """
        return random.Random(digest_of([self.seed, name, item.id]))


class Attack(ABC):
    """Base class of prompt attacks.

    Attributes:
        name: Name on the command line.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        file: Name in results of the user's file with the attack; None for a built-in attack.
        read_as: What was read as template in the user's file, if its fields have other names.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    file: str | None = None
    read_as: str | None = None

    def covers(self, item: Item) -> bool:
        """Return whether the attack has something to ask for this prompt. The other prompts are not asked."""
        return True

    @abstractmethod
    def apply(self, item: Item, context: AttackContext) -> Item:
        """Return the attacked prompt. The result must be deterministic.

        Args:
            item: The prompt.
            context: Template, demonstrations and seed.

        Returns:
            The changed item. It keeps its id, so that its answer can be paired with the answer to the original prompt.
        """


class StageAttack:
    """Base class of attacks that a stage of their own makes and measures, such as prefilling.

    Attributes:
        name: Name on the command line, and of the setting with its options.
        title: Name in reports.
        description: One sentence for `wpn-bench list`.
        Settings: Its options.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]
