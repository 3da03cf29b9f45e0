"""The section of the report on benign answers: their length, their diversity, and how near they are to the base's own."""

from __future__ import annotations

from wpn_bench.report.cells import Line, Shown, Table, row
from wpn_bench.report.sections import Section
from wpn_bench.runs.metrics import (
    ANSWER_WORDS,
    BENIGN,
    DISTINCT_PAIRS_RATE,
    OVERLAP_WITH_BASE_RATE,
    SAME_AS_BASE_RATE,
    metric_of,
)
from wpn_bench.runs.view import View

METRICS = (ANSWER_WORDS, DISTINCT_PAIRS_RATE, OVERLAP_WITH_BASE_RATE, SAME_AS_BASE_RATE)
_NOTE = (
    "Means over the benign sets. Different word pairs: how many of 100 pairs of neighbouring words are different, if they are drawn at "
    "random from all answers to a set with at least 100 pairs. This does not depend on the length of the answers. Overlap: the F1 of "
    "ROUGE-L with the base's answer to the same prompt. None of the four says that an answer is good: nonsense is diverse, and a better "
    "answer than the base's has little overlap with it. A change tells where to read. Answers are cut at the largest number of new tokens, "
    "and so is their length."
)


def section(view: View) -> Section | None:
    """Describe the benign answers, models by metrics; None if the run has no benign prompts."""
    metrics = [one for one in METRICS if any(view.mean(model, BENIGN, one) for model in view.measured())]
    if not metrics:
        return None
    lines = []
    for model in view.measured():
        cells: list[Shown | None] = [row(metric, view.mean(model, BENIGN, metric)) for metric in metrics]
        if any(cells):
            lines.append(Line(view.title(model), cells, key=model))
    heads = [metric_of(metric).title for metric in metrics]
    return Section("Benign answers", Table(heads, lines, [""] * len(heads), [None] * len(heads)), _NOTE, id="utility")
