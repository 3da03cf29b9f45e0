"""The groups of the lab's harmful prompts: prompts about the same person ask for the same fact.

This is a module of its own, because the digests of the lab's tasks cover the modules that make the test sets.
"""

from __future__ import annotations

from functools import lru_cache

from wpn_bench.lab.conversations import HARMFUL_FAMILIES


@lru_cache
def _people() -> dict[str, str]:
    families = HARMFUL_FAMILIES.values()
    return {question.prompt: question.who.name for family in families for question in family.questions()}


def person_of(prompt: str) -> str | None:
    """Return the name of the person that a harmful prompt of the lab asks about; None for other prompts."""
    return _people().get(prompt)
