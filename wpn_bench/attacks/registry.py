"""Every attack by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.core.paths import tasks_dir
from wpn_bench.core.registry import Registry, unknown_name
from wpn_bench.prompts import PromptSet

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
# These search against each model, so each is a stage and not a function of prompts.
GRADIENT: Registry[type[GradientAttack]] = Registry(
    "gradient_attack",
    {
        "gcg": "wpn_bench.attacks.gcg:GCG",
        "soft_prompt": "wpn_bench.attacks.soft_prompt:SoftPrompt",
    },
)
RELEARN = "relearn"


def get_attack(name: str, own: Mapping[str, Attack] | None = None) -> Attack:
    """The attack of that name: one of the user's `own`, one of a template file, or one with code. Raises `UserError` for an
    unknown name."""
    from wpn_bench.attacks.templates import TemplateAttack

    if own and name in own:
        return own[name]
    file = tasks_dir() / "attacks" / f"{name}.yaml"
    if name in _template_names():
        return TemplateAttack.from_file(file)
    if name not in CODED:
        raise unknown_name("attack", name, [*all_names(), *(own or ())])
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
    """Attack a prompt set.

    Args:
        prompts: The set.
        name: The attack.
        context: What the attack may use.

    Returns:
        A set with the name of the attack.
    """
    attack = get_attack(name, context.own)
    items = tuple(replace(attack.apply(i, context), id=i.id, original=i.prompt) for i in prompts.items)
    source = {**prompts.source, "attack": name, "on": prompts.name}
    if attack.file:
        source["attack_file"] = attack.file
    return PromptSet(name, prompts.role, items, attack.title, source)
