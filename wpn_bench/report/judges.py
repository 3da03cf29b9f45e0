"""The report's section on judges: their names, the errors of the deciding judge, and disagreements between judges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wpn_bench.analysis.judge_card import JudgeCard
from wpn_bench.core.numbers import interval, percent
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.judge_card import lines, usage_line
from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import BENCHMARK_AVERAGE, HARMLESS_RATE, PROMPT_SUITES
from wpn_bench.runs.view import View

SHOWN = 20  # the most disagreements to show for each further judge


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An answer that one judge calls harmful and another does not."""

    model: str
    where: str
    prompt: str
    response: str
    verdicts: tuple[tuple[str, float, bool], ...]  # judge, score, harmful


@dataclass(frozen=True, slots=True)
class Second:
    """A further judge: its rates, and its largest disagreements with the deciding judge."""

    name: str
    rates: Table | None
    disagreements: list[Disagreement]


@dataclass(frozen=True, slots=True)
class Judges:
    """The section on judges. `card` and `figures` are None if the run has no judge card for the deciding judge.

    `usage` of a judge is a line of text, empty for a judge that spends no tokens.
    """

    judges: list[dict[str, Any]]
    card: JudgeCard | None
    figures: Table | None
    corrected: Table | None
    seconds: list[Second]
    agreement: Table | None

    @property
    def has_section(self) -> bool:
        """Whether the report's section on judges says more than which judge decides."""
        return bool(self.card or self.seconds or any(judge["usage"] for judge in self.judges))


def judges(run: Run) -> Judges | None:
    """The section on judges; None if the results do not name the judges."""
    view = run.view
    known = [
        {**judge, "usage": usage_line(judge["usage"]) if judge.get("usage") else ""}
        for judge in view.run.get("judges") or []
    ]
    if not known:
        return None
    card = card_of(view)
    seconds = [
        Second(j["name"], _rates(view, j["name"]), _disagreements(view, run.samples, known[0], j)) for j in known[1:]
    ]
    return Judges(known, card, _figures(card) if card else None, _corrected(view, card), seconds, _agreement(view))


def _figures(card: JudgeCard) -> Table:
    """The figures of a judge card in one row."""
    found = lines(card)
    cells: list[Shown | None] = [Shown(value=value, ci=ci, note=of) for _, value, ci, of in found]
    line = Line(name=card.judge, small=f"threshold {card.threshold}", cells=cells)
    return Table([name for name, *_ in found], [line], [""] * len(found), [None] * len(found))


def card_of(view: View) -> JudgeCard | None:
    """The card of the deciding judge; None if the run has none."""
    return JudgeCard.model_validate(view.run["judge_card"]) if view.run.get("judge_card") else None


def _sets(view: View) -> list[tuple[str, str]]:
    return [(suite, name) for suite in PROMPT_SUITES for name in view.sets(suite)]


def _title(suite: str) -> str:
    return PROMPT_SUITES[suite].title if suite in PROMPT_SUITES else suite


def _table(view: View, found: list[Line]) -> Table | None:
    models = view.measured()
    return Table([view.title(m) for m in models], found, [""] * len(models), [None] * len(models)) if found else None


def _corrected(view: View, card: JudgeCard | None) -> Table | None:
    """Sets by models: the corrected harmless rate, with the raw rate below it."""
    found = []
    for suite, name in _sets(view):
        cells = [corrected(view, card, model, suite, name) for model in view.measured()]
        if any(cells):
            found.append(Line(name=name, key=name, small=PROMPT_SUITES[suite].title, cells=cells))
    return _table(view, found)


def corrected(view: View, card: JudgeCard | None, model: str, suite: str, name: str) -> Shown | None:
    """The corrected harmless rate of one model on one set.

    Args:
        view: The results.
        card: The card of the deciding judge.
        model: The model.
        suite: The suite of the set.
        name: The set.

    Returns:
        The rate, with the raw rate as a note; the note also says if it was clipped to 0 or 100 %. None if not measured.
    """
    cell, raw = (view.cell(model, suite, name, f"{HARMLESS_RATE}{end}") for end in ("_corrected", ""))
    shown = rate(cell, 0)
    if cell is None or raw is None or raw.value is None or shown is None:
        return None
    cut = card is not None and card.correct(raw.value, raw.n or 0).cut
    note = f"raw {percent(raw.value)} {interval(raw.ci_low, raw.ci_high)}".strip()
    return replace(shown, note=f"{note}; cut" if cut else note, n=None)


def _rates(view: View, judge: str) -> Table | None:
    """Sets by models: the harmless rate by a further judge, with that by the deciding judge below it."""
    found = []
    for suite, name in _sets(view):
        cells: list[Shown | None] = []
        for model in view.measured():
            shown = rate(view.cell(model, suite, name, f"{HARMLESS_RATE}[{judge}]"))
            decides = view.cell(model, suite, name, HARMLESS_RATE)
            note = f"deciding judge {percent(decides.value)}" if decides else ""
            cells.append(replace(shown, note=note, n=None) if shown else None)
        if any(cells):
            found.append(Line(name=name, key=name, small=PROMPT_SUITES[suite].title, cells=cells))
    return _table(view, found)


def _agreement(view: View) -> Table | None:
    """The agreement of each pair of judges, over all responses and for each model."""
    found = []
    for row in view.run.get("agreement") or []:
        first, second = row["judges"]
        cells: list[Shown | None] = [
            Shown(value=percent(row["agreement"])),
            Shown(
                value="n/a" if row["kappa"] is None else f"{row['kappa']:.2f}",
                ci=interval(row["ci_low"], row["ci_high"], 1.0, 2),
            ),
            *(Shown(value=percent(share)) for share in row["harmful"]),
        ]
        who = "all responses" if row["model"] is None else view.title(row["model"])
        key = BENCHMARK_AVERAGE if row["model"] is None else ""  # styled as a summary row
        found.append(Line(name=f"{first} and {second}", small=f"{who}, n = {row['n']:,}", cells=cells, key=key))
    columns = ["Agree", "Cohen's kappa", "Harmful by the first", "Harmful by the second"]
    return Table(columns, found, ["same verdict", "1: always, 0: as by chance", "", ""], [None] * 4) if found else None


def _disagreements(view: View, frame: Any, deciding: dict[str, Any], other: dict[str, Any]) -> list[Disagreement]:
    """The answers on which two judges differ most; each text appears once.

    Scores of different judges are not on one scale. So each score s is rescaled piecewise around its judge's threshold t:
    (s - t) / (1 - t) from t on and (s - t) / t below, from -1 to 1.
    """
    columns = {"score": deciding, f"score:{other['name']}": other}
    if not set(columns) <= set(frame.columns):
        return []
    frame = frame.dropna(subset=[*columns, "response"])
    far = {
        column: (frame[column] - t) / (1 - t) ** (frame[column] >= t) / t ** (frame[column] < t)
        for column, judge in columns.items()
        for t in [float(judge["threshold"])]
    }
    one, two = far.values()
    apart = (one - two).abs()[(one >= 0) != (two >= 0)]
    order = apart.sort_values(ascending=False, kind="stable").index
    kept = frame.loc[order].drop_duplicates("response").head(SHOWN)
    return [
        Disagreement(
            view.title(str(row["model"])) if row["model"] != BASE else "Base model",
            f"{row['set']} ({_title(row['suite'])})",
            str(row["prompt"]),
            str(row["response"]),
            tuple(
                (judge["name"], float(row[column]), float(row[column]) >= float(judge["threshold"]))
                for column, judge in columns.items()
            ),
        )
        for row in kept.to_dict("records")
    ]
