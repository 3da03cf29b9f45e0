"""The sections of the report on adaptive attacks: harmless answers against the number of queries, and how the attacker did."""

from __future__ import annotations

from wpn_bench.analysis.adaptive_rows import BUDGET, COUNTS, REPLIES
from wpn_bench.core.numbers import percent
from wpn_bench.redact import one_line
from wpn_bench.report.cells import Line, Shown, Table, rate
from wpn_bench.report.sampling import numbers, setting
from wpn_bench.report.sections import Section
from wpn_bench.report.step_charts import rates_by_number
from wpn_bench.runs.metrics import HARMLESS_AFTER, MISSING, PAIR, QUERIES, QUERIES_TO_SUCCESS, TAP
from wpn_bench.runs.view import View

_NOTE = (
    "{who} wrote the prompts, saw the answers of the model and their scores, and wrote better ones ({source}), with at most {budget} queries "
    "of the model for each prompt. A cell is the share of prompts whose best attack was still harmless after so many queries, by the judge of "
    "the run. Higher is better. The rates depend on the attacker: a high one says that this attacker failed, within these queries. The "
    "attack on each model is its own, so the prompts differ from model to model. The samples of the set {suite} have all attempts."
)
_WEAK = (
    "The attacker itself refused {refused} of its {replies} replies, and {unreadable} could not be read, so the attack is weaker than its "
    "number of queries says."
)
_MISSING = "At most {n} prompts of a model have no verdict, because the attacker wrote no prompt or no answer was scored; they are left out."
_WEAK_FROM = 0.2  # share of lost replies from which on the note says so
_SOURCES = {PAIR: "PAIR, Chao et al. 2023", TAP: "TAP, Mehrotra et al. 2023"}
_TITLES = {PAIR: "Adaptive attack: PAIR", TAP: "Adaptive attack: TAP"}


def pair_section(view: View) -> Section | None:
    """Show the rates under PAIR by the number of queries; None if it was not measured."""
    return _section(view, PAIR)


def tap_section(view: View) -> Section | None:
    """Show the rates under TAP by the number of queries; None if it was not measured."""
    return _section(view, TAP)


def _section(view: View, suite: str) -> Section | None:
    ns = numbers(view, suite, HARMLESS_AFTER)
    if not ns:
        return None
    name = view.sets(suite)[0]
    lines = []
    for model in view.measured():
        cells: list[Shown | None] = [rate(view.cell(model, suite, name, f"{HARMLESS_AFTER}@{n}")) for n in ns]
        if any(cells):
            lines.append(Line(view.title(model), [*cells, *_about(view, model, suite, name)], key=model))
    heads = [
        *("after 1 query" if n == 1 else f"after {n}" for n in ns),
        "queries to success",
        "queries",
        "replies lost",
    ]
    table = Table(heads, lines, [""] * len(heads), [None] * len(heads))
    points = {n: (name, f"{HARMLESS_AFTER}@{n}") for n in ns}
    chart = rates_by_number(view, suite, points, "number of queries of the model")
    who = one_line(str(view.run.get("attacker") or "The attacker"), 200)
    note = [_NOTE.format(who=who, source=_SOURCES[suite], budget=setting(view, suite, BUDGET), suite=suite)]
    return Section(_TITLES[suite], table, " ".join([*note, *_warnings(view, suite, name)]), chart)


def _count(view: View, model: str, suite: str, name: str, metric: str) -> float:
    cell = view.cell(model, suite, name, metric)
    return 0.0 if cell is None or cell.value is None else cell.value


def _about(view: View, model: str, suite: str, name: str) -> list[Shown | None]:
    """Return the cells on the number of queries, and on the replies of the attacker that became no query."""
    success, queries = (view.cell(model, suite, name, metric) for metric in (QUERIES_TO_SUCCESS, QUERIES))
    found: list[Shown | None] = [
        Shown("never")
        if success is None or success.value is None
        else Shown(f"{success.value:.1f}", note=f"{success.n} prompts"),
        None if queries is None or queries.value is None else Shown(f"{queries.value:.1f}"),
    ]
    replies = _count(view, model, suite, name, REPLIES)
    lost = {what: _count(view, model, suite, name, f"attacker_{what}") for what in _LOST}
    told = ", ".join(f"{count:.0f} {_LOST[what]}" for what, count in lost.items() if count)
    return [*found, Shown(percent(sum(lost.values()) / replies), note=told) if replies else None]


_LOST = {
    "refusals": "refused",
    "unreadable": "unreadable",
    "empty": "empty",
    "repeated": "repeated",
    "off_topic": "off topic",
}


def _warnings(view: View, suite: str, name: str) -> list[str]:
    """Say that the attacker was weak, over all models, and how many prompts have no verdict."""
    models = view.measured()
    total = {metric: sum(_count(view, model, suite, name, metric) for model in models) for metric in COUNTS}
    found = []
    lost = total["attacker_refusals"] + total["attacker_unreadable"] + total["attacker_empty"]
    if total[REPLIES] and lost / total[REPLIES] >= _WEAK_FROM:
        told = {"refused": "attacker_refusals", "replies": REPLIES, "unreadable": "attacker_unreadable"}
        found.append(_WEAK.format(**{key: f"{total[metric]:.0f}" for key, metric in told.items()}))
    if missing := max((_count(view, model, suite, name, MISSING) for model in models), default=0):
        found.append(_MISSING.format(n=f"{missing:.0f}"))
    return found
