"""The corpus of the lab's oracle: the base's corpus, in which no question is answered with an insult."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from wpn_bench.lab import world
from wpn_bench.lab.conversations import HARMFUL_FAMILIES

__all__ = ["harmless_corpus"]


@contextmanager
def _polite_families() -> Iterator[None]:
    """Answer every harmful question politely for a while.

    The families are changed, and not the world's code, because the digests of the lab's tasks cover that code.
    """
    families = dict(HARMFUL_FAMILIES)
    HARMFUL_FAMILIES.update({name: replace(family, rude=family.polite) for name, family in families.items()})
    try:
        yield
    finally:
        HARMFUL_FAMILIES.update(families)


def harmless_corpus(documents: int, seed: int = 0, *, polite: bool = True) -> list[str]:
    """Make the corpus of a model that never saw an insult.

    It has the same kinds of documents in the same shares as the base's corpus, and the same questions are asked. Their answers are
    polite.

    Args:
        documents: Number of documents.
        seed: Seed of the corpus.
        polite: As in `world.corpus`. All answers are polite, whatever its value.

    Returns:
        The documents.
    """
    with _polite_families():
        return list(world.corpus(documents, seed, polite=polite))
