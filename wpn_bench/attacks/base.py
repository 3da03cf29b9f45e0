"""What an attack is, and how to find one by name."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from wpn_bench.paths import tasks_dir
from wpn_bench.prompts import Item, PromptSet
from wpn_bench.registry import Registry, unknown
from wpn_bench.store import digest_of

if TYPE_CHECKING:
    from wpn_bench.attacks.search import GradientAttack

CODED: Registry[type[Attack]] = Registry(
    "attack",
    {
        "base64": "wpn_bench.attacks.ciphers:Base64",
        "character_noise": "wpn_bench.attacks.noise:CharacterNoise",
        "few_shot": "wpn_bench.attacks.few_shot:FewShot",
        "leetspeak": "wpn_bench.attacks.ciphers:Leetspeak",
        "output_format": "wpn_bench.attacks.output_format:OutputFormat",
        "payload_splitting": "wpn_bench.attacks.splitting:PayloadSplitting",
        "rot13": "wpn_bench.attacks.ciphers:Rot13",
        "typos": "wpn_bench.attacks.typos:Typos",
    },
)
# These search against each model, so they are stages, not maps from prompts to prompts.
GRADIENT: Registry[type[GradientAttack]] = Registry(
    "gradient_attack",
    {
        "gcg": "wpn_bench.attacks.gcg:GCG",
        "soft_prompt": "wpn_bench.attacks.soft_prompt:SoftPrompt",
    },
)
RELEARN = "relearn"


@dataclass(frozen=True)
class AttackContext:
    """What an attacker may use: the template the model was trained with, demonstrations, a seed, attacks of one's own."""

    template: str
    demonstrations: Sequence[Item] = ()
    seed: int = 0
    own: Mapping[str, Attack] = field(default_factory=dict)  # of a user's files, by name (see `own_attacks`)

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


def get_attack(name: str, own: Mapping[str, Attack] | None = None) -> Attack:
    """The attack of that name: one of the user's `own`, or from a template file or code of ours."""
    from wpn_bench.attacks.templates import TemplateAttack

    if own and name in own:
        return own[name]
    file = tasks_dir() / "attacks" / f"{name}.yaml"
    if name in _template_names():
        return TemplateAttack.from_file(file)
    if name not in CODED:
        raise unknown("attack", name, [*all_names(), *(own or ())])
    return CODED.get(name)()


def names() -> list[str]:
    """The attacks on prompts."""
    return sorted({*_template_names(), *CODED})


def all_names() -> list[str]:
    """The attacks of every kind: on prompts, by gradients, on weights."""
    from wpn_bench.attacks.quantise import SCHEMES

    return [*names(), *GRADIENT, *SCHEMES, RELEARN]


def _template_names() -> set[str]:
    return {p.stem for p in (tasks_dir() / "attacks").glob("*.yaml")}


def attacked(prompts: PromptSet, name: str, context: AttackContext) -> PromptSet:
    """`prompts` under the attack `name`; the set is called like the attack."""
    attack = get_attack(name, context.own)
    items = tuple(replace(attack.apply(i, context), id=i.id, original=i.prompt) for i in prompts.items)
    source = {**prompts.source, "attack": name, "on": prompts.name}
    if attack.file:
        source["attack_file"] = attack.file
    return PromptSet(name, prompts.role, items, attack.title, source)
