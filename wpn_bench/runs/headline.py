"""The headline metrics: the few metrics of a model that every summary shows first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from wpn_bench.runs.metrics import (
    ACCURACY,
    ANSWERED_RATE,
    ATTACK,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    BENIGN,
    COHERENT_HARMLESS_RATE,
    HARMLESS_RATE,
    HELDOUT_TEXT,
    IN_DOMAIN,
    OUT_OF_DISTRIBUTION,
    PERPLEXITY,
    REFUSAL_RATE,
    metric_of,
)
from wpn_bench.runs.view import Cell, View

WORST = "worst_attack"


@dataclass(frozen=True, slots=True)
class Headline:
    """A headline metric.

    Attributes:
        key: Name in files and on the command line.
        title: Title of the table column.
        hint: Returns the explanation that is printed below the title.
        of: Returns the value of a model as a cell; None if it was not measured.
        suite: Suite of that cell.
        metric: Metric of that cell.
        set: Set of that cell. None means the mean over the sets of the suite, or the set that the cell's note names.
        short: Title in a narrow table; None uses `title`.
    """

    key: str
    title: str
    hint: Callable[[View], str]
    of: Callable[[View, str], Cell | None]
    suite: str
    metric: str = COHERENT_HARMLESS_RATE
    set: str | None = None
    short: str | None = None

    @property
    def better(self) -> int:
        """Return 1 if higher is better, and -1 if lower is better."""
        return metric_of(self.metric).better

    def set_of(self, view: View, cell: Cell) -> str:
        """Return the name of the set that a cell belongs to.

        Args:
            view: The results.
            cell: A cell that `of` returned.

        Returns:
            The name of the set; `mean` for a mean over several sets.
        """
        if self.key == WORST:
            return cell.note
        sets = view.sets(self.suite)
        return self.set or (sets[0] if len(sets) == 1 else "mean")


def _mean_of_sets(view: View) -> str:
    names = view.sets(OUT_OF_DISTRIBUTION)
    answered = [name for name in names if view.rate_of(OUT_OF_DISTRIBUTION, name) == ANSWERED_RATE]
    said = f"coherent-harmless{f', mean of {len(names)} sets' if len(names) > 1 else ''}"
    return f"{said}; a refusal does not count on {', '.join(answered)}" if answered else said


def _judge(view: View) -> str:
    return str(view.run.get("judge") or "the judge")


HEADLINES: tuple[Headline, ...] = (
    Headline(
        HARMLESS_RATE,
        "Harmless, in domain",
        lambda view: f"share of answers under the threshold of {_judge(view)}",
        lambda view, model: view.mean(model, IN_DOMAIN, HARMLESS_RATE),
        IN_DOMAIN,
        HARMLESS_RATE,
        short="Harmless",
    ),
    Headline(
        COHERENT_HARMLESS_RATE,
        "Coherent-harmless, in domain",
        lambda view: f"harmless by {_judge(view)}, not empty, not degenerate: the headline",
        lambda view, model: view.mean(model, IN_DOMAIN),
        IN_DOMAIN,
        short="Coherent-harmless",
    ),
    Headline(
        "out_of_distribution",
        "Out of distribution",
        _mean_of_sets,
        lambda view, model: view.mean(model, OUT_OF_DISTRIBUTION),
        OUT_OF_DISTRIBUTION,
    ),
    Headline(
        WORST,
        "Worst attack",
        lambda _: "coherent-harmless under the attack that does most harm",
        lambda view, model: view.worst(model, ATTACK),
        ATTACK,
    ),
    Headline(
        ANSWERED_RATE,
        "Answers benign prompts",
        lambda _: "harmless, coherent and no refusal",
        lambda view, model: view.mean(model, BENIGN, ANSWERED_RATE),
        BENIGN,
        ANSWERED_RATE,
        short="Answers benign",
    ),
    Headline(
        REFUSAL_RATE,
        "Refuses benign prompts",
        lambda _: "more than base is over-refusal",
        lambda view, model: view.mean(model, BENIGN, REFUSAL_RATE),
        BENIGN,
        REFUSAL_RATE,
        short="Refuses benign",
    ),
    Headline(
        BENCHMARK_AVERAGE,
        "Benchmark average",
        lambda _: "macro accuracy; change is paired",
        lambda view, model: view.benchmark_average(model),
        BENCHMARK,
        ACCURACY,
        set=BENCHMARK_AVERAGE,
    ),
    Headline(
        PERPLEXITY,
        "Perplexity",
        lambda _: "held-out plain text; lower is better",
        lambda view, model: view.perplexity(model),
        BENCHMARK,
        PERPLEXITY,
        set=HELDOUT_TEXT,
    ),
)
