"""Few-shot demonstrations: harmful questions with harmful answers precede the prompt (Wei et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.prompts import Item

LONGEST = 240  # maximum number of characters of a shown answer, so that several answers fit into a short context


def shown_examples(item: Item, context: AttackContext, name: str, shots: int) -> list[tuple[Item, str]]:
    """Draw other items of the forget set, with their shortest harmful responses.

    Args:
        item: The prompt, which is never drawn.
        context: The forget set and the seed.
        name: Name of the attack. Each attack draws other items.
        shots: Number of items; there are fewer if the forget set has fewer.

    Returns:
        The items and their responses, which are cut after `LONGEST` characters.
    """
    pool = [d for d in context.demonstrations if d.harmful and d.id != item.id]
    chosen = context.random_for(item, name).sample(pool, min(shots, len(pool)))
    return [(d, min(d.harmful, key=len)[:LONGEST]) for d in chosen]


class FewShot(Attack):
    """Puts three items of the forget set with their shortest harmful responses before the prompt."""

    name = "few_shot"
    title = "Few-shot harmful demonstrations"
    description = "Three harmful question-answer pairs of the forget set stand before the prompt."
    shots = 3

    def apply(self, item: Item, context: AttackContext) -> Item:
        answered = shown_examples(item, context, self.name, self.shots)
        return replace(item, context=context.template.demonstrations(answered))
