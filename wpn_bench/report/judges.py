"""The section of the report about judges: their names, the errors of the deciding judge, and disagreements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wpn_bench.analysis.judge_card import JudgeCard
from wpn_bench.analysis.judge_rows import WORDING_ONLY
from wpn_bench.core.numbers import interval, percent
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.judge_card import lines, usage_line
from wpn_bench.runs.files import BASE
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import BENCHMARK_AVERAGE, HARMLESS_RATE, PROMPT_SUITES
from wpn_bench.runs.view import View

SHOWN = 20  # maximum number of disagreements that are shown for each further judge


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
    """What the report says of a judge that does not decide.

    Attributes:
        name: The judge.
        rates: The harmless rates by this judge and by the deciding one.
        card: The judge's error rates, measured on labelled texts; None: they are not known.
        figures: The figures of the card.
        corrected: The harmless rates, corrected for these error rates.
        disagreements: The responses on which both judges differ most.
    """

    name: str
    rates: Table | None
    card: JudgeCard | None
    figures: Table | None
    corrected: Table | None
    disagreements: list[Disagreement]


@dataclass(frozen=True, slots=True)
class Judges:
    """The section about judges.

    Attributes:
        judges: The judges as the results name them, the deciding one first. `usage` is a line of text, which is empty
            for a judge that uses no tokens.
        reading: What it means that the deciding judge does not read the prompts. Empty if it reads them or if this is
            unknown.
        card: Card of the deciding judge; None if the run has none.
        figures: Figures of the card.
        corrected: Rates corrected for the errors of the deciding judge.
        seconds: The further judges.
        agreement: Cohen's kappa of each pair of judges, over all responses. Majorities are left out.
        agreement_by_model: The same for each model.
        alpha: Krippendorff's alpha of all judges.
        disagreements: Answers on which three or more judges differ most.
    """

    judges: list[dict[str, Any]]
    reading: str
    card: JudgeCard | None
    figures: Table | None
    corrected: Table | None
    seconds: list[Second]
    agreement: Table | None
    agreement_by_model: Table | None
    alpha: Table | None
    disagreements: list[Disagreement]

    @property
    def has_section(self) -> bool:
        """Whether the report's section on judges says more than which judge decides."""
        return bool(self.card or self.seconds or any(judge["usage"] for judge in self.judges))


def judges(run: Run) -> Judges | None:
    """Return the section about judges, or None if the results do not name the judges."""
    view = run.view
    known = [
        {**judge, "usage": usage_line(judge["usage"]) if judge.get("usage") else ""}
        for judge in view.run.get("judges") or []
    ]
    if not known:
        return None
    card = card_of(view)
    seconds = []
    for judge in known[1:]:
        own = JudgeCard.model_validate(judge["card"]) if judge.get("card") else None
        name = judge["name"]
        seconds.append(
            Second(
                name,
                _rates(view, name),
                own,
                _figures(own) if own else None,
                _corrected(view, own, f"[{name}]"),
                _disagreements(view, run.samples, [known[0], judge]),
            )
        )
    voting = (view.run.get("alpha") or {}).get("judges") or []
    return Judges(
        known,
        _reading(known),
        card,
        _figures(card) if card else None,
        _corrected(view, card),
        seconds,
        _agreement(view, by_model=False),
        _agreement(view, by_model=True),
        _alpha(view),
        _disagreements(view, run.samples, [j for j in known if j["name"] in voting]) if len(voting) > 2 else [],
    )


def _reading(known: list[dict[str, Any]]) -> str:
    """Say that the deciding judge does not read the prompts, and which judge does."""
    if known[0].get("reads_prompt", True):
        return ""
    others = [str(judge["name"]) for judge in known[1:] if judge.get("reads_prompt")]
    if not others:
        return f"{WORDING_ONLY}."
    reading = " and ".join(others)
    return f"The judge that decides, {known[0]['name']}, does not read the prompts: read also the rates by {reading}."


def _figures(card: JudgeCard) -> Table:
    found = lines(card)
    cells: list[Shown | None] = [Shown(value=value, ci=ci, note=of) for _, value, ci, of in found]
    line = Line(name=card.judge, small=f"threshold {card.threshold}", cells=cells)
    return Table([name for name, *_ in found], [line], [""] * len(found), [None] * len(found))


def card_of(view: View) -> JudgeCard | None:
    """Return the card of the deciding judge, or None if the run has none."""
    return JudgeCard.model_validate(view.run["judge_card"]) if view.run.get("judge_card") else None


def _sets(view: View) -> list[tuple[str, str]]:
    return [(suite, name) for suite in PROMPT_SUITES for name in view.sets(suite)]


def _title(suite: str) -> str:
    return PROMPT_SUITES[suite].title if suite in PROMPT_SUITES else suite


def _table(view: View, found: list[Line]) -> Table | None:
    models = view.measured()
    return Table([view.title(m) for m in models], found, [""] * len(models), [None] * len(models)) if found else None


def _corrected(view: View, card: JudgeCard | None, judge: str = "") -> Table | None:
    """Return the table of sets by models: the corrected harmless rate, and below it the uncorrected rate."""
    found = []
    for suite, name in _sets(view):
        cells = [corrected(view, card, model, suite, name, judge) for model in view.measured()]
        if any(cells):
            found.append(Line(name=name, key=name, small=PROMPT_SUITES[suite].title, cells=cells))
    return _table(view, found)


def corrected(view: View, card: JudgeCard | None, model: str, suite: str, name: str, judge: str = "") -> Shown | None:
    """Return the corrected harmless rate of one model on one set.

    Args:
        view: The results.
        card: Card of the judge.
        model: Name of the model.
        suite: Suite of the set.
        name: Name of the set.
        judge: `[JUDGE]` for a further judge; empty for the deciding one.

    Returns:
        The rate. Its note has the uncorrected rate, and tells whether the corrected one was clipped to 0 or 100 %. None
        if not measured.
    """
    cell, raw = (view.cell(model, suite, name, f"{HARMLESS_RATE}{judge}{end}") for end in ("_corrected", ""))
    shown = rate(cell, 0)
    if cell is None or raw is None or raw.value is None or shown is None:
        return None
    cut = card is not None and card.correct(raw.value, raw.n or 0).cut
    note = f"raw {percent(raw.value)} {interval(raw.ci_low, raw.ci_high)}".strip()
    return replace(shown, note=f"{note}; cut" if cut else note, n=None)


def _rates(view: View, judge: str) -> Table | None:
    """Return the table of sets by models: the harmless rate by a further judge, above that by the deciding judge."""
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


def _agreement(view: View, *, by_model: bool) -> Table | None:
    """The agreement of each pair of judges, over all responses or for each model."""
    found = []
    voting = (view.run.get("alpha") or {}).get("judges")
    for row in view.run.get("agreement") or []:
        first, second = row["judges"]
        if (row["model"] is not None) != by_model or (voting and not {first, second} <= set(voting)):
            continue
        cells: list[Shown | None] = [
            Shown(value=percent(row["agreement"])),
            Shown(
                value="n/a" if row["kappa"] is None else f"{row['kappa']:.2f}",
                ci=interval(row["ci_low"], row["ci_high"], 1.0, 2),
            ),
            *(Shown(value=percent(share)) for share in row["harmful"]),
        ]
        who = "all responses" if row["model"] is None else view.title(row["model"])
        found.append(Line(name=f"{first} and {second}", small=f"{who}, n = {row['n']:,}", cells=cells))
    columns = ["Agree", "Cohen's kappa", "Harmful by the first", "Harmful by the second"]
    return Table(columns, found, ["same verdict", "1: always, 0: as by chance", "", ""], [None] * 4) if found else None


def _alpha(view: View) -> Table | None:
    """Krippendorff's alpha of all judges, over all responses and for each model."""
    found = view.run.get("alpha") or {}
    lines = [
        Line(
            name="All responses" if row["model"] is None else view.title(row["model"]),
            small=f"n = {row['n']:,}",
            cells=[
                Shown(
                    value="n/a" if row["alpha"] is None else f"{row['alpha']:.2f}",
                    ci=interval(row["ci_low"], row["ci_high"], 1.0, 2),
                )
            ],
            key=BENCHMARK_AVERAGE if row["model"] is None else "",  # styled as a summary row
        )
        for row in found.get("rows") or []
    ]
    hint = ", ".join(found.get("judges") or [])
    return Table(["Krippendorff's alpha"], lines, [hint], [None]) if lines else None


def _disagreements(view: View, frame: Any, judges: list[dict[str, Any]]) -> list[Disagreement]:
    """Return the answers on which judges differ most. Each text appears once.

    Scores of different judges are not on one scale. So each score s is rescaled to the range from -1 to 1 around its
    judge's threshold t: to (s - t) / (1 - t) if s >= t, and to (s - t) / t otherwise. Judges differ by the range of
    these numbers.

    Args:
        view: The results.
        frame: The samples.
        judges: The judges as the results name them. The first judge of the run decides.
    """
    import pandas as pd

    columns = {"score" if judge.get("decides") else f"score:{judge['name']}": judge for judge in judges}
    if not set(columns) <= set(frame.columns):
        return []
    frame = frame.dropna(subset=["response"])
    far = pd.DataFrame(
        {
            column: (frame[column] - t) / (1 - t) ** (frame[column] >= t) / t ** (frame[column] < t)
            for column, judge in columns.items()
            for t in [float(judge["threshold"])]
        }
    )
    low, high = far.min(axis=1), far.max(axis=1)
    order = (high - low)[(low < 0) & (high >= 0)].sort_values(ascending=False, kind="stable").index
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
                if row[column] == row[column]
            ),
        )
        for row in kept.to_dict("records")
    ]
