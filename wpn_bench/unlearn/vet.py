"""Harmless references that the run's own judge calls harmful are not trained on.

Collected references are noisy: a tenth of the "harmless" continuations among the triples drawn from RealToxicityPrompts
insult somebody, and a method that learns them learns to insult. All methods get the same vetted set. It is training data
only; no test prompt or answer is looked at. Harmful references stay whatever the judge says: one that sees abusive
words does not see dangerous help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wpn_bench.core.progress import Advance
from wpn_bench.jobs.job import StageContext
from wpn_bench.prompts import Item

if TYPE_CHECKING:
    from wpn_bench.harmless.judges.base import Judge


def vet(items: Sequence[Item], judge: Judge, threshold: float, advance: Advance = lambda n: None) -> tuple[Item, ...]:
    """`items` without the harmless references scored at or above `threshold`.

    A reference that cannot be judged stays. An item of which all harmless references are dropped goes whole; one that
    had none stays.
    """
    from wpn_bench.harmless.judges import scores_by

    texts = harmless_texts(items)
    scores = dict(zip(texts, scores_by(judge, texts, advance), strict=True))

    def decent(text: str) -> bool:
        score = scores[text]
        return score is None or score < threshold

    vetted = (replace(item, harmless=tuple(filter(decent, item.harmless))) for item in items)
    return tuple(after for before, after in zip(items, vetted, strict=True) if after.harmless or not before.harmless)


def harmless_texts(items: Sequence[Item]) -> list[str]:
    """All harmless references, each once, in order."""
    return list(dict.fromkeys(text for item in items for text in item.harmless))


def run_vet_stage(ctx: StageContext) -> None:
    """Needs `prompts` (the forget set); writes the same kind of artifact (which may be empty)."""
    from wpn_bench.harmless.judges import judge_of
    from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

    items = read_items(ctx.needs["prompts"])
    judge = judge_of(ctx, ctx.params)
    left = vet(items, judge, ctx.params["threshold"], ctx.progress(len(harmless_texts(items)), "references"))
    write_rows(ctx.out / ITEMS, [item_row(i) for i in left])
