"""Typing errors: the words stay readable for a person, but the tokenizer splits them into unusual tokens."""

from __future__ import annotations

from dataclasses import replace

from wpn_bench.attacks.base import Attack, AttackContext
from wpn_bench.prompts import Item


class Typos(Attack):
    """Changes about one word in four: swaps two adjacent inner letters, or removes or doubles one letter."""

    name = "typos"
    title = "Typing errors"
    description = "Inner letters swapped, dropped or doubled in about one word of four (after Belinkov and Bisk 2018)."
    share = 0.25

    def apply(self, item: Item, context: AttackContext) -> Item:
        rng = context.random_for(item, self.name)
        words = item.prompt.split(" ")
        long = [k for k, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
        for k in rng.sample(long, min(len(long), max(1, round(len(words) * self.share)))):
            words[k] = _mistype(words[k], rng.randrange(1, len(words[k]) - 2), rng.choice("sdd2"))
        return replace(item, prompt=" ".join(words))


def _mistype(word: str, at: int, how: str) -> str:
    alike = word[at] == word[at + 1]  # a swap would have no effect, so one of them is dropped
    if how == "s" and not alike:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if how == "d" or alike:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]
