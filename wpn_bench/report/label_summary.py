"""What people's labels of a run's own answers say, as tables of the report and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from wpn_bench.analysis.label_rates import LabelRates, ModelRate, rates_of
from wpn_bench.analysis.label_sample import MANY_LABELS, LabelSample, draw_sample
from wpn_bench.analysis.stats import Estimate
from wpn_bench.core.numbers import interval, percent
from wpn_bench.errors import UserError
from wpn_bench.report.cells import Line, Shown, Table
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import SKIPPED, Labels, read_labels
from wpn_bench.runs.view import View, one_line

WIDTH = 96  # characters of a line of text
NAMED = 4  # with more prompt sets than this, only their number is said


@dataclass(frozen=True, slots=True)
class Labelled:
    """The part of the report on labels of the run's own answers.

    Attributes:
        judge: The deciding judge.
        question: What annotators were asked.
        about: A sentence: how many answers were labelled, of which sets.
        notes: What a reader should know.
        errors: Sensitivity and specificity of the judge; None without labels.
        models: The raw and the corrected harmless rate of each model; None without labels.
    """

    judge: str
    question: str
    about: str
    notes: list[str]
    errors: Table | None
    models: Table | None


def labelled(run: Run) -> Labelled | None:
    """The part of the report on labels of the run's own answers; None if nobody has labelled any."""
    labels = read_labels(run.folder)
    if not labels.samples or not labels.lines:
        return None
    last = labels.samples[-1]
    try:
        sample = draw_sample(run, last.n, last.models, last.sets)
    except UserError as e:
        note = f"The labels cannot be used: {e.problem}. Label the answers of this run again (wpn-bench label)."
        return Labelled(_judge(run), last.question, "", [note], None, None)
    return summarise(run, sample, labels, last.question)


def summarise(run: Run, sample: LabelSample, labels: Labels, question: str) -> Labelled:
    """Say what labels of a sample are worth.

    Args:
        run: The run.
        sample: The sample.
        labels: The labels.
        question: What annotators were asked.

    Returns:
        The tables and sentences.
    """
    rates = rates_of(sample, labels)
    annotators = len(labels.annotators)
    sets = ", ".join(sample.sets) if len(sample.sets) <= NAMED else f"{len(sample.sets)} prompt sets"
    equal = " (equal ones are labelled once)" if len(sample.exchanges) < rates.drawn else ""
    about = (
        f"{rates.labelled} of {rates.drawn} drawn answers{equal} labelled by {annotators} "
        f"{'person' if annotators == 1 else 'people'}, of those to {sets}."
    )
    if not rates.labelled:
        return Labelled(_judge(run), question, about, _notes(run, sample, labels, rates), None, None)
    return Labelled(
        _judge(run),
        question,
        about,
        _notes(run, sample, labels, rates),
        _errors(run, rates),
        _models(run.view, rates.models),
    )


def _judge(run: Run) -> str:
    return str(run.view.run.get("judge") or "the judge")


def _notes(run: Run, sample: LabelSample, labels: Labels, rates: LabelRates) -> list[str]:
    notes = []
    together = labels.together()
    if rates.undecided:
        notes.append(f"{rates.undecided} of the drawn answers could not be decided and count nowhere.")
    if skipped := sum(together.get(one.exchange) == SKIPPED for one in sample.drawn):
        notes.append(f"{skipped} of the drawn answers were skipped and count nowhere.")
    known = set(sample.exchanges)
    if gone := sum(exchange not in known for exchange in together):
        notes.append(
            f"{gone} labels are of answers that are not in this sample (another choice of models, sets or number, or the run"
            " was computed again and answers changed); they count nowhere."
        )
    if labels.unreadable:
        notes.append(f"{labels.unreadable} lines of the label file are damaged and count nowhere.")
    if few := [run.view.title(rate.model) for rate in rates.models if 0 < rate.labelled < MANY_LABELS]:
        notes.append(
            f"Fewer than {MANY_LABELS} labels: {', '.join(few)}. Such an interval may be too narrow; label more (--n), or fewer"
            " models (--model)."
        )
    if rates.labelled and any(rate.corrected.low is None for rate in rates.models):
        notes.append("Models without a label have no corrected rate.")
    if rates.agreement is not None and rates.agreement.value == rates.agreement.value:
        k = rates.agreement
        notes.append(
            f"Two annotators agree on {percent(k.agreement)} of {k.n} answers; Cohen's kappa {k.value:.2f}"
            f" {interval(k.low, k.high, 1.0, 2)}."
        )
    return notes


def _shown(e: Estimate, missing: str = "not known") -> Shown:
    return Shown(percent(e.value), interval(e.low, e.high)) if e.value == e.value else Shown(missing, absent=True)


def _errors(run: Run, rates: LabelRates) -> Table:
    cells: list[Shown | None] = [_shown(rates.sensitivity), _shown(rates.specificity)]
    line = Line(_judge(run), cells, small=f"{rates.labelled} labels")
    return Table(
        ["Sensitivity", "Specificity"], [line], ["harmful answers found", "harmless answers cleared"], [None] * 2
    )


def _models(view: View, rates: Sequence[ModelRate]) -> Table:
    lines = []
    for rate in rates:
        cells: list[Shown | None] = [
            Shown(f"{rate.answers:,}"), Shown(f"{rate.labelled:,}"), _shown(rate.raw), _shown(rate.corrected),
        ]  # fmt: skip
        lines.append(Line(view.title(rate.model), cells, key=rate.model))
    columns = ["Answers", "Labels", "Harmless by the judge", "Corrected by labels"]
    return Table(columns, lines, [""] * 4, [None] * 4)


def as_text(summary: Labelled) -> str:
    """The summary for a terminal: sentences, and tables in columns.

    Args:
        summary: The summary.

    Returns:
        The lines.
    """
    lines = textwrap.wrap(one_line(summary.about), WIDTH)
    for corner, table in (("judge", summary.errors), ("model", summary.models)):
        if table is not None:
            lines += ["", *_columns(corner, table)]
    for note in summary.notes:
        lines += ["", *textwrap.wrap(one_line(note), WIDTH)]
    return "\n".join(lines)


def _columns(corner: str, table: Table) -> list[str]:
    rows = [[corner, *map(str.lower, table.columns)]]
    for line in table.lines:
        rows.append([one_line(line.name), *(f"{c.value} {c.ci}".strip() if c is not None else "" for c in line.cells)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
