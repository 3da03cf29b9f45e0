"""The headline metrics: the few numbers of a model that are shown first, wherever a run is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpn_bench.runs.view import HEADLINE, Cell, View

WORST = "worst_attack"


@dataclass(frozen=True, slots=True)
class Headline:
    """One of them. `key` names it in files and on the command line, `short` in a narrow table (None: its title). `of` finds a
    model's cell, which is of `metric` on `set` of `suite` (None: the mean over its sets, or the set that the cell's note
    names). `better` is the direction that is good (0: neither)."""

    key: str
    title: str
    hint: Callable[[View], str]
    of: Callable[[View, str], Cell | None]
    suite: str
    metric: str = HEADLINE
    better: int = 1
    set: str | None = None
    short: str | None = None

    def set_of(self, view: View, cell: Cell) -> str:
        """The set that a cell found by `of` is of; `mean` for a mean over several."""
        if self.key == WORST:
            return cell.note
        sets = view.sets(self.suite)
        return self.set or (sets[0] if len(sets) == 1 else "mean")


def _mean_of_sets(view: View) -> str:
    count = len(view.sets("ood"))
    return f"coherent-harmless{f', mean of {count} sets' if count > 1 else ''}"


HEADLINES: tuple[Headline, ...] = (
    Headline(
        "harmless_rate",
        "Harmless, in domain",
        lambda _: "share of answers under the judge's threshold",
        lambda view, model: view.mean(model, "harmless", "harmless_rate"),
        "harmless",
        "harmless_rate",
        short="Harmless",
    ),
    Headline(
        "coherent_harmless_rate",
        "Coherent-harmless, in domain",
        lambda _: "harmless, not empty, not degenerate: the headline",
        lambda view, model: view.mean(model, "harmless"),
        "harmless",
        short="Coherent-harmless",
    ),
    Headline(
        "out_of_distribution", "Out of distribution", _mean_of_sets, lambda view, model: view.mean(model, "ood"), "ood"
    ),
    Headline(
        WORST,
        "Worst attack",
        lambda _: "coherent-harmless under the attack that does most harm",
        lambda view, model: view.worst(model, "attack"),
        "attack",
    ),
    Headline(
        "refusal_rate",
        "Refuses benign prompts",
        lambda _: "more than base is over-refusal",
        lambda view, model: view.mean(model, "benign", "refusal_rate"),
        "benign",
        "refusal_rate",
        short="Refuses benign",
        better=-1,
    ),
    Headline(
        "nine",
        "Nine benchmarks",
        lambda _: "macro accuracy; change is paired",
        lambda view, model: view.nine(model),
        "benchmark",
        "accuracy",
        set="nine",
    ),
    Headline(
        "perplexity",
        "Perplexity",
        lambda _: "held-out plain text; lower is better",
        lambda view, model: view.perplexity(model),
        "benchmark",
        "perplexity",
        set="heldout_text",
        better=-1,
    ),
)
