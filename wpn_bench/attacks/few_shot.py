"""Few-shot demonstrations: the prompt comes after harmful questions that were answered harmfully (Wei et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.prompts import Item


class FewShot(Attack):
    """Three items of the forget set with their harmful responses stand before the prompt."""

    name = "few_shot"
    title = "Few-shot harmful demonstrations"
    description = "Three harmful question-answer pairs of the forget set stand before the prompt."
    shots = 3
    longest = 240  # characters of a demonstrated answer, so that small contexts still hold three

    def apply(self, item: Item, context: AttackContext) -> Item:
        pool = [d for d in context.demonstrations if d.harmful and d.id != item.id]
        chosen = context.random_for(item, self.name).sample(pool, min(self.shots, len(pool)))
        answered = [(d, min(d.harmful, key=len)[: self.longest]) for d in chosen]
        return replace(item, context=context.template.demonstrations(answered))
