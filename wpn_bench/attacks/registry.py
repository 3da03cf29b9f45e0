"""The registries of attacks, and functions that find an attack by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.core.paths import tasks_dir
from wpn_bench.core.registry import Registry, import_attribute, unknown_name
from wpn_bench.errors import UserError
from wpn_bench.prompts import PromptSet

if TYPE_CHECKING:
    from pydantic import BaseModel

    from wpn_bench.attacks.base import StageAttack
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
# A gradient attack depends on the model. So it is a stage, and not a function of the prompts.
GRADIENT: Registry[type[GradientAttack]] = Registry(
    "gradient_attack",
    {
        "gcg": "wpn_bench.attacks.gcg:GCG",
        "soft_prompt": "wpn_bench.attacks.soft_prompt:SoftPrompt",
    },
)
# Attacks that a stage makes and measures. The settings of a run have a field of the same name.
_BY_STAGE: Mapping[str, str] = {
    "best_of_n": "wpn_bench.attacks.best_of_n:BestOfNAttack",
    "internals": "wpn_bench.attacks.internals:InternalsAttack",
    "pair": "wpn_bench.attacks.adaptive:PairAttack",
    "prefilling": "wpn_bench.attacks.prefilling:PrefillingAttack",
    "sampling": "wpn_bench.attacks.sampling:SamplingAttack",
    "tap": "wpn_bench.attacks.adaptive:TapAttack",
}
RELEARN = "relearn"
RELEARN_SEARCH = "relearn_search"
CONVERSATIONS = "conversations"  # stands for all attacks by conversations


def get_attack(name: str, own: Mapping[str, Attack] | None = None) -> Attack:
    """Find a prompt attack. It may be one of the user's own, a template file, or a class.

    Args:
        name: Name of the attack.
        own: The user's own attacks, by name.

    Returns:
        The attack.

    Raises:
        UserError: The name is unknown.
    """
    from wpn_bench.attacks.templates import TemplateAttack

    if own and name in own:
        return own[name]
    file = tasks_dir() / "attacks" / f"{name}.yaml"
    if name in _template_names():
        return TemplateAttack.from_file(file)
    if name not in CODED:
        raise unknown_name("attack", name, [*all_names(), *(own or ())])
    return CODED.get(name)()


def by_stage() -> dict[str, type[StageAttack]]:
    """Return the attacks that a stage makes and measures, by name."""
    return {name: import_attribute(place) for name, place in _BY_STAGE.items()}


def chosen_by_stage(config: object) -> dict[str, BaseModel]:
    """Return the settings of the attacks that a stage makes and that a run asks for, by name.

    Args:
        config: The settings of the run, in which each attack has a field of its name. None leaves the attack out.

    Returns:
        The settings.
    """
    return {name: chosen for name in _BY_STAGE if (chosen := getattr(config, name)) is not None}


def names() -> list[str]:
    """Return the names of all prompt attacks."""
    return sorted({*_template_names(), *CODED})


def all_names() -> list[str]:
    """Return the names of all attacks: prompt, gradient and weight attacks, and those that a stage makes."""
    from wpn_bench.attacks.quantise import SCHEMES

    return [*names(), CONVERSATIONS, *GRADIENT, *SCHEMES, *_BY_STAGE, RELEARN, RELEARN_SEARCH]


def conversations() -> list[str]:
    """Return the names of the attacks by conversations that come with the package."""
    from wpn_bench.attacks.templates import TemplateAttack

    found = (get_attack(name) for name in sorted(_template_names()))
    return [attack.name for attack in found if isinstance(attack, TemplateAttack) and attack.spec.turns]


def expanded(chosen: Sequence[str]) -> tuple[str, ...]:
    """Replace the name `conversations` by the names of all attacks by conversations.

    Args:
        chosen: Names of prompt attacks.

    Returns:
        The names, each once.
    """
    each = ((conversations() if name == CONVERSATIONS else [name]) for name in chosen)
    return tuple(dict.fromkeys(name for names in each for name in names))


def _template_names() -> set[str]:
    return {p.stem for p in (tasks_dir() / "attacks").glob("*.yaml")}


def attacked(prompts: PromptSet, name: str, context: AttackContext) -> PromptSet:
    """Apply a prompt attack to a prompt set.

    Args:
        prompts: The prompt set.
        name: Name of the attack.
        context: The data that the attack may use.

    Returns:
        The attacked set, which has the name of the attack. Each item keeps its id and its original prompt.

    Raises:
        UserError: The attack's file has nothing for any of the prompts.
    """
    attack = get_attack(name, context.own)
    covered = [item for item in prompts.items if attack.covers(item)]
    if prompts.items and not covered:
        raise UserError(
            f"{attack.file} has an attacked prompt for none of the {len(prompts.items)} prompts of {prompts.name!r} that are"
            f" asked ({name})",
            f"its field `prompt` must be a prompt of that set, such as {prompts.items[0].prompt[:80]!r}; with --limit, only the"
            " first prompts are asked",
        )
    items = tuple(replace(attack.apply(i, context), id=i.id, original=i.prompt) for i in covered)
    source = {**prompts.source, "attack": name, "on": prompts.name}
    if attack.file:
        source["attack_file"] = attack.file
    return PromptSet(name, prompts.role, items, attack.title, source, refusal=prompts.refusal)
