"""References that contradict their label, by the run's own judge, are not trained on.

Collected triples are noisy: of the harmless continuations of RealToxicityPrompts triples a tenth insult somebody. A method
that likes them learns to insult; one that dislikes the harmful ones unlearns what is harmless there. All methods get the
same vetted set. It is training data only: test prompts have no references, and no test answer is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wpn_bench.errors import JobFailed
from wpn_bench.executors import StageContext
from wpn_bench.prompts import Item
from wpn_bench.store import write_json

if TYPE_CHECKING:
    from wpn_bench.harmless.judges.base import Judge

VETTED = "vetted.json"


@dataclass(frozen=True)
class Vetted:
    """The items left, and how many references and items were dropped."""

    items: tuple[Item, ...]
    harmless_dropped: int
    harmful_dropped: int
    items_dropped: int


def vet(items: Sequence[Item], judge: Judge, threshold: float, advance: object = None) -> Vetted:
    """Drop harmless references scored at or above `threshold` and harmful ones below it.

    A reference that cannot be judged stays. An item left without a side that it had is dropped whole.
    """
    texts = list(dict.fromkeys(t for item in items for t in (*item.harmless, *item.harmful)))
    scores = dict(zip(texts, judge.score(texts, *([advance] if advance else [])), strict=True))

    def keep(text: str, harmful: bool) -> bool:
        score = scores[text]
        return score is None or (score >= threshold) == harmful

    kept: list[Item] = []
    lost = {"harmless": 0, "harmful": 0}
    for item in items:
        good = tuple(t for t in item.harmless if keep(t, False))
        bad = tuple(t for t in item.harmful if keep(t, True))
        lost["harmless"] += len(item.harmless) - len(good)
        lost["harmful"] += len(item.harmful) - len(bad)
        if bool(good) == bool(item.harmless) and bool(bad) == bool(item.harmful):
            kept.append(replace(item, harmless=good, harmful=bad))
    return Vetted(tuple(kept), lost["harmless"], lost["harmful"], len(items) - len(kept))


def run_vet_stage(ctx: StageContext) -> None:
    """Needs `prompts` (the forget set); writes the same kind of artifact, and `vetted.json` with what was dropped."""
    from wpn_bench.harmless.judges import get_judge
    from wpn_bench.harmless.measure import ITEMS, item_row, read_items, write_rows

    items = read_items(ctx.needs["prompts"])
    n = len({t for item in items for t in (*item.harmless, *item.harmful)})
    judge = get_judge(ctx.params["judge"], ctx.local["device"])
    found = vet(items, judge, ctx.params["threshold"], ctx.progress(n, "references"))
    if not found.items:
        raise JobFailed(
            f"the judge {ctx.params['judge']} contradicts the labels of every forget item: it cannot see the harm that the"
            " set is about; choose another judge, or set vet: false"
        )
    write_rows(ctx.out / ITEMS, [item_row(i) for i in found.items])
    write_json(
        ctx.out / VETTED,
        {
            "items": len(found.items),
            "items_dropped": found.items_dropped,
            "harmless_dropped": found.harmless_dropped,
            "harmful_dropped": found.harmful_dropped,
        },
    )
