"""What an attack is, and how to find one by name."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from wpn_bench.paths import tasks_dir
from wpn_bench.prompts import Item, PromptSet
from wpn_bench.registry import Registry, unknown
from wpn_bench.store import digest_of

CODED: Registry[type[Attack]] = Registry(
    "attack",
    {
        "few_shot": "wpn_bench.attacks.few_shot:FewShot",
        "typos": "wpn_bench.attacks.typos:Typos",
    },
)


@dataclass(frozen=True)
class AttackContext:
    """What an attacker may use: the template the model was trained with, demonstrations, a seed."""

    template: str
    demonstrations: Sequence[Item] = ()
    seed: int = 0

    def random_for(self, item: Item, name: str) -> random.Random:
        """A generator that depends on the seed, the attack and the item, but not on the item's place in the set."""
        return random.Random(digest_of([self.seed, name, item.id]))


class Attack(ABC):
    """Changes one prompt. The item keeps its id, so that answers pair with those to the plain prompt."""

    name: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def apply(self, item: Item, context: AttackContext) -> Item:
        """The attacked prompt; the same for the same item, context and attack."""


def get_attack(name: str) -> Attack:
    """The attack of that name, from a template file or from code."""
    from wpn_bench.attacks.templates import TemplateAttack

    file = tasks_dir() / "attacks" / f"{name}.yaml"
    if name in _template_names():
        return TemplateAttack.from_file(file)
    if name not in CODED:
        raise unknown("attack", name, names())
    return CODED.get(name)()


def names() -> list[str]:
    return sorted({*_template_names(), *CODED})


def _template_names() -> set[str]:
    return {p.stem for p in (tasks_dir() / "attacks").glob("*.yaml")}


def attacked(prompts: PromptSet, name: str, context: AttackContext) -> PromptSet:
    """`prompts` under the attack `name`; the set is called like the attack."""
    attack = get_attack(name)
    items = tuple(replace(attack.apply(i, context), id=i.id, original=i.prompt) for i in prompts.items)
    return PromptSet(name, prompts.role, items, attack.title, {**prompts.source, "attack": name, "on": prompts.name})
