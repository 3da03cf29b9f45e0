"""Choose among the harmless references of the forget set.

Most harmless references of collected triples are refusals. A model that is trained on them learns to refuse, also where
nothing is to be refused. Where an item has a reference that answers without harm, training on that one teaches to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from wpn_bench.prompts import Item


def without_refusals(
    items: Iterable[Item], detect: Callable[[str, str], Mapping[str, Any]], *, keep_last: bool
) -> tuple[Item, ...]:
    """Leave out the harmless references that are refusals, in full or in part.

    Args:
        items: The forget set.
        detect: Detects a refusal in a prompt and a response (see `harmless.judges.refusals.detector`).
        keep_last: Whether an item that has only refusals keeps them. Otherwise it is left out.

    Returns:
        The items with the remaining references. An item that had no harmless reference stays as it is.
    """
    chosen = []
    for item in items:
        answers = tuple(text for text in item.harmless if not detect(item.request, text)["refusal"])
        if answers:
            chosen.append(replace(item, harmless=answers))
        elif keep_last or not item.harmless:
            chosen.append(item)
    return tuple(chosen)
