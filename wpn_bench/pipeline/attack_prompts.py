"""Apply the prompt attacks of a run to its prompts."""

from __future__ import annotations

from collections.abc import Callable

from wpn_bench import attacks, models
from wpn_bench.attacks import AttackContext
from wpn_bench.config import RunConfig
from wpn_bench.engine.generation import too_long
from wpn_bench.errors import UserError
from wpn_bench.models import ModelRef
from wpn_bench.models.tokenizer import encode_prompts, load_tokenizer
from wpn_bench.prompts import Item, PromptSet, Template
from wpn_bench.prompts.templates import turns_of

SHOWN_NAMES = 8  # maximum number of attacks in a file that a note names


def attack_prompts(
    config: RunConfig,
    template: Template,
    model: ModelRef,
    forget: PromptSet,
    target: PromptSet | None,
    names: set[str],
    notes: list[str],
    *,
    one_turn: bool = False,
) -> list[tuple[str, PromptSet]]:
    """Apply every prompt attack to the first in-domain set. The attacks from the user's files come last.

    Args:
        config: Settings of the run.
        template: Renders demonstrations.
        model: The base model, whose context limits the number of demonstrations in a conversation.
        forget: The forget set, from which some attacks take demonstrations.
        target: The first in-domain set; None if there is no set to attack.
        names: Names of the test sets. Attacks must not have these names.
        notes: Gets a line for each file of attacks, and for each attack that is left out.
        one_turn: Whether the chat template of a model writes only one turn of a conversation. Attacks with earlier turns are then
            left out, because that model would be asked something else.

    Returns:
        ("attack", prompt set) for each attack.

    Raises:
        UserError: An attack and a test set have the same name, or a file has no attacked prompt for any of the prompts.
    """
    if target is None:
        return []
    own = attacks.own_attacks(config.attack_files)
    chosen = list(dict.fromkeys((*config.attacks, *own)))
    if taken := names.intersection((*chosen, *config.gradient_attacks, *config.quantise)):
        raise UserError(
            f"an attack and a prompt set both have the name {min(taken)!r}",
            "rename the set (--prompts NAME=FILE), or the attack in your file",
        )
    for file in dict.fromkeys(attack.file for attack in own.values()):
        of_file = [name for name, attack in own.items() if attack.file == file]
        more = ", ..." if len(of_file) > SHOWN_NAMES else ""
        read_as = next((own[name].read_as for name in of_file if own[name].read_as), None)
        told = f"; read {read_as}" if read_as else ""
        notes.append(
            f"prompt attacks read from {file}: {', '.join(of_file[:SHOWN_NAMES])}{more} ({len(of_file)}){told}"
        )
    context = AttackContext(template, forget.items, own=own, fits=_fitting(config, template, model))
    made = [attacks.attacked(target, name, context) for name in chosen]
    if one_turn and (lost := [one.name for one in made if any(_has_turns(item) for item in one.items)]):
        notes.append(
            f"left out: {', '.join(lost)}, because the chat template of a model writes only one turn of a conversation"
            " (--template plain writes all)"
        )
        made = [one for one in made if one.name not in lost]
    for one in made:
        if len(one.items) < len(target.items):
            notes.append(
                f"the attack {one.name} has attacked prompts for {len(one.items)} of the {len(target.items)} prompts of"
                f" {target.name}; the others are not asked"
            )
    return [("attack", one) for one in made]


def _has_turns(item: Item) -> bool:
    return item.kind == "question" and bool(turns_of(item.context))


def _fitting(config: RunConfig, template: Template, model: ModelRef) -> Callable[[Item], bool]:
    """Return a function that tells whether an item and the response to it fit into the model's context."""
    tokenizer, context = load_tokenizer(model.path), models.context_length_of(model.path)

    def fits(item: Item) -> bool:
        (ids,) = encode_prompts(tokenizer, [template.render(item)])
        return not too_long(len(ids), config.decoding, context)

    return fits
