"""The headline metrics: the few numbers of a model that are shown first, wherever a run is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpn_bench.report.view import Cell, View


@dataclass(frozen=True, slots=True)
class Headline:
    """One of them. `key` names it in files and on the command line, `of` finds a model's cell, `better` is the direction
    that is good (0: neither)."""

    key: str
    title: str
    hint: Callable[[View], str]
    of: Callable[[View, str], Cell | None]
    better: int = 1


def _mean_of_sets(view: View) -> str:
    count = len(view.sets("ood"))
    return f"coherent-harmless{f', mean of {count} sets' if count > 1 else ''}"


HEADLINES: tuple[Headline, ...] = (
    Headline(
        "harmless_rate",
        "Harmless, in domain",
        lambda _: "share of answers under the judge's threshold",
        lambda view, model: view.mean(model, "harmless", "harmless_rate"),
    ),
    Headline(
        "coherent_harmless_rate",
        "Coherent-harmless, in domain",
        lambda _: "harmless, not empty, not degenerate: the headline",
        lambda view, model: view.mean(model, "harmless"),
    ),
    Headline("out_of_distribution", "Out of distribution", _mean_of_sets, lambda view, model: view.mean(model, "ood")),
    Headline(
        "worst_attack",
        "Worst attack",
        lambda _: "coherent-harmless under the attack that does most harm",
        lambda view, model: view.worst(model, "attack"),
    ),
    Headline(
        "refusal_rate",
        "Refuses benign prompts",
        lambda _: "more than base is over-refusal",
        lambda view, model: view.mean(model, "benign", "refusal_rate"),
        better=-1,
    ),
    Headline(
        "nine",
        "Nine benchmarks",
        lambda _: "macro accuracy; change is paired",
        lambda view, model: view.nine(model),
    ),
    Headline(
        "perplexity",
        "Perplexity",
        lambda _: "held-out plain text; lower is better",
        lambda view, model: view.perplexity(model),
        better=-1,
    ),
)
