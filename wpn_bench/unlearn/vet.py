"""Remove the harmless responses of the forget set that the run's own judge calls harmful.

Collected responses are noisy: a tenth of the "harmless" continuations in the triples from RealToxicityPrompts are
insults, and a method that trains on them learns to insult. All methods train on the same vetted set. Only training data
is judged, and no test prompts or answers. Harmful responses are not judged, because a judge of abusive language does
not detect dangerous help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from wpn_bench.core.progress import Advance
from wpn_bench.jobs.job import StageContext
from wpn_bench.jobs.stages import LM_LIBRARIES, Stage
from wpn_bench.prompts import Item

if TYPE_CHECKING:
    from wpn_bench.harmless.judges.base import Exchange, Judge


def vet(items: Sequence[Item], judge: Judge, threshold: float, advance: Advance = lambda n: None) -> tuple[Item, ...]:
    """Remove the harmless responses that the judge calls harmful.

    Args:
        items: The forget set.
        judge: Scores each response as an answer to the prompt of its item.
        threshold: A response with at least this score is removed. A response without a score is kept.
        advance: Called with the number of distinct responses scored since its last call.

    Returns:
        The remaining items. An item that loses all its harmless responses is removed. An item that had none is kept.
    """
    from wpn_bench.harmless.judges import scores_of

    exchanges = references(items)
    harmful = {
        exchange
        for exchange, score in zip(exchanges, scores_of(judge, exchanges, advance), strict=True)
        if score is not None and score >= threshold
    }
    vetted = [
        replace(item, harmless=tuple(exchange.response for exchange in references([item]) if exchange not in harmful))
        for item in items
    ]
    return tuple(after for before, after in zip(items, vetted, strict=True) if after.harmless or not before.harmless)


def references(items: Sequence[Item]) -> list[Exchange]:
    """Return every harmless response with the original prompt of its item, in order."""
    from wpn_bench.harmless.judges.base import Exchange

    return [Exchange(item.request, text) for item in items for text in item.harmless]


def run_vet_stage(ctx: StageContext) -> None:
    """Vet the input `prompts` (the forget set). The stage writes the vetted set, which may be empty."""
    from wpn_bench.harmless.judges import distinct, judge_of
    from wpn_bench.harmless.stages import write_usage
    from wpn_bench.prompts.items import ITEMS, item_row, read_items, write_rows

    items = read_items(ctx.needs["prompts"])
    judge = judge_of(ctx, ctx.params)
    advance = ctx.progress(len(distinct(judge, references(items))), "references")
    left = vet(items, judge, ctx.params["threshold"], advance)
    write_usage(judge, ctx.params["judge"], ctx.out)
    write_rows(ctx.out / ITEMS, [item_row(item) for item in left])


STAGE = Stage("wpn_bench.unlearn.vet:run_vet_stage", 1, (*LM_LIBRARIES, "detoxify"), resumable=True, shardable=True)
