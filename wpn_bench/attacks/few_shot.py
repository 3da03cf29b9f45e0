"""Few-shot demonstrations: harmful questions with harmful answers precede the prompt (Wei et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.prompts import Item


class FewShot(Attack):
    """Puts three items of the forget set with their shortest harmful responses before the prompt."""

    name = "few_shot"
    title = "Few-shot harmful demonstrations"
    description = "Three harmful question-answer pairs of the forget set stand before the prompt."
    shots = 3
    longest = 240  # maximum number of characters of a shown answer, so that three answers fit into a short context

    def apply(self, item: Item, context: AttackContext) -> Item:
        pool = [d for d in context.demonstrations if d.harmful and d.id != item.id]
        chosen = context.random_for(item, self.name).sample(pool, min(self.shots, len(pool)))
        answered = [(d, min(d.harmful, key=len)[: self.longest]) for d in chosen]
        return replace(item, context=context.template.demonstrations(answered))
