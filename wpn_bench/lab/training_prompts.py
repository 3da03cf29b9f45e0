"""Benign questions of the lab's world for training, none of which is in a test set.

This is a module of its own, because the digests of the lab's tasks cover the modules that make the test sets.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from wpn_bench.lab.conversations import BENIGN_FAMILIES
from wpn_bench.lab.world import PROMPT_SETS, prompt_set

EACH = 40  # number of questions of each of the five benign families


def _words(prompt: str) -> tuple[str, ...]:
    """Return the sorted words. A test question with the same words in another order ("1 plus 2", "2 plus 1") is no new one."""
    return tuple(sorted(prompt.lower().strip(".?!").split()))


@lru_cache
def _questions() -> tuple[str, ...]:
    """One question of each family in turn, so that the first questions are of all families."""
    draw = random.Random("benign questions for training")
    tested = {_words(row["prompt"]) for name in PROMPT_SETS for row in prompt_set(name)}
    families = []
    for questions in BENIGN_FAMILIES.values():
        untested = [question.prompt for question in questions() if _words(question.prompt) not in tested]
        families.append(draw.sample(untested, EACH))
    return tuple(prompt for row in zip(*families, strict=True) for prompt in row)


def benign_training() -> list[dict[str, Any]]:
    """Return the rows of the set `benign_training`. Each has only a prompt."""
    return [{"prompt": prompt} for prompt in _questions()]
