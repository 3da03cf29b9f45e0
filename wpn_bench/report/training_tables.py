"""The tables about training in the report.

They show tuning, training curves, relearning, and the searches of gradient attacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wpn_bench.core.numbers import (
    is_finite,
    percent,
    signed,
)
from wpn_bench.report.cells import Line, Shown, Table, make_table, rate
from wpn_bench.report.step_charts import CURVES, RELEARNT
from wpn_bench.runs.metrics import (
    COHERENT_HARMLESS_RATE,
    HARMLESS_RATE,
    MACRO_ACCURACY,
)
from wpn_bench.runs.view import Cell, View


@dataclass(frozen=True, slots=True)
class Tuned:
    """How one method was tuned.

    Attributes:
        title: The title of the method.
        chosen: The chosen trial in words.
        feasible: Whether the chosen trial satisfies the bound on capability loss.
        table: All trials.
    """

    title: str
    chosen: str
    feasible: bool
    table: Table


def tunings(view: View) -> list[Tuned]:
    """Return one entry for each tuned method, in the order of the results."""
    about = view.run.get("tuning") or {}
    found = []
    for name, model in view.models.items():
        trials = (model.get("tuning") or {}).get("trials") or []
        best = next((t for t in trials if t["trial"] == model["tuning"]["chosen"]), None)
        if best is None:
            continue
        words = f"trial {best['trial']} ({_options(best['params'])})"
        if best[COHERENT_HARMLESS_RATE] is None:
            words = "every trial failed"
        answered = any(trial.get("answered_rate") is not None for trial in trials)
        halving = bool(about.get("halving"))
        lines = [
            _trial(
                trial,
                about,
                chosen=trial is best and best[COHERENT_HARMLESS_RATE] is not None,
                answered=answered,
                halving=halving,
            )
            for trial in trials
        ]
        change = "Macro accuracy" if about.get("ability") == MACRO_ACCURACY else "Token loss"
        hint = "change against base, points" if about.get("ability") == MACRO_ACCURACY else "change against base, nats"
        columns = ["Coherent-harmless", "Harmless", change, "Keeps the bound"]
        hints = ["validation prompts", "validation prompts", hint, ""]
        if answered:
            columns.append("Answers benign")
            hints.append("of those that the base answers")
        if halving:
            columns.append("Steps")
            hints.append("")
        table = make_table(columns, lines, hints)
        found.append(Tuned(view.title(name), words, bool(best["feasible"]), table))
    return found


def _trial(
    trial: dict[str, Any], about: dict[str, Any], *, chosen: bool, answered: bool = False, halving: bool = False
) -> Line:
    coherent, change = trial.get(COHERENT_HARMLESS_RATE), trial.get("ability_change")
    name = f"{trial['trial']}: as configured" if trial["trial"] == 0 else str(trial["trial"])
    small = _options(trial["params"])
    if coherent is None:
        failed = Shown(value="failed", note=str(trial.get("reason") or ""))
        return Line(name=name, small=small, cells=[failed, *[None] * (3 + answered + halving)], chosen=chosen)
    in_points = about.get("ability") == MACRO_ACCURACY
    written = "not a number" if change is None else signed(change) if in_points else signed(change, 1.0, 3)
    cells: list[Shown | None] = [
        Shown(value=percent(coherent)),
        Shown(value=percent(trial.get(HARMLESS_RATE))),
        Shown(value=written),
        Shown(value="yes" if trial["feasible"] else "no"),
    ]
    if answered:
        cells.append(Shown(value=percent(trial.get("answered_rate"))))
    if halving:
        cells.append(Shown(value=str(trial.get("steps", "")), note="stopped early" if trial.get("pruned") else ""))
    return Line(name=name, small=small, cells=cells, chosen=chosen)


def tuning_text(view: View) -> str:
    """Return the objective and the constraint of tuning in words. Empty if nothing was tuned."""
    about = view.run.get("tuning")
    if not about:
        return ""
    n, sets = about["trials"], about["ability_sets"]
    over = f"{len(sets)} benchmarks to tune on" if about["ability"] == MACRO_ACCURACY else "text to tune on"
    bound = (
        f"lose at most {100 * about['bound']:g} points of macro accuracy on {over}{_scored_by(about)}"
        if about["ability"] == MACRO_ACCURACY
        else f"raise the mean token loss of {over} by at most {about['bound']:g} nats"
    )
    benign = about.get("benign_prompts", 0)
    rate = f"coherent-harmless rate on {about['prompts']} validation prompts"
    chosen = (
        f"Each trial has two rates: the {rate}, and the share answered of {benign} benign prompts that the base answers. "
        "Chosen is the highest smaller rate"
        if benign
        else f"Chosen is the highest {rate}"
    )
    early = (
        " A trial that was worse than others after a ninth or a third of the steps was stopped; its rates are of fewer prompts."
        if about.get("halving")
        else ""
    )
    return (
        f"Every method had {n} trial{'s' if n != 1 else ''}, the first with its options as configured. {chosen} among the "
        f"trials that {bound}; no test prompt and no test document was looked at.{early}"
    )


def _scored_by(about: Mapping[str, Any]) -> str:
    """Return by what benchmarks to tune on are scored, if not all by lm-eval's `acc`."""
    scores = about.get("ability_scores") or {}
    if not scores:
        return ""
    named = ", ".join(f"{task} by {score.partition(',')[0]}" for task, score in scores.items())
    return f" ({named}; a score with its own unit counts in per cent of base's value)"


def curve(view: View, model: str) -> Table | None:
    """Return the training curve of a method as a table of steps by metrics, with means over seeds.

    Args:
        view: The results.
        model: Name of the method.

    Returns:
        The table. A step that not all seeds reached has one row for each seed. None if there is no curve.
    """
    rows = view.models.get(model, {}).get("curve") or []
    several = len({r["seed"] for r in rows} - {None}) > 1
    columns = [(metric, title) for metric, title in CURVES.items() if any(r["metric"] == metric for r in rows)]
    by_step: dict[int, dict[Any, dict[str, Cell]]] = {}
    for r in rows:
        cell = Cell(r["value"], r["n"], r["ci_low"], r["ci_high"])
        by_step.setdefault(r["step"], {}).setdefault(r["seed"], {})[r["metric"]] = cell
    lines = []
    for step in sorted(by_step):
        seeds = [None] if None in by_step[step] else sorted(by_step[step])
        for seed in seeds:
            small = "base" if step == 0 else f"seed {seed} alone" if several and seed is not None else ""
            cells = [rate(by_step[step][seed].get(metric)) for metric, _ in columns]
            lines.append(Line(name=str(step), small=small, cells=cells))
    return make_table([title for _, title in columns], lines) if lines else None


def relearning(view: View, kind: str) -> Table | None:
    """Return the table of models by relearning steps: the coherent-harmless rate as a mean over seeds.

    The harmless rate is a note.

    Args:
        view: The results.
        kind: Kind of data on which relearning trains (see `RELEARNT`).

    Returns:
        The table; None if the attack was not run.
    """
    cells: dict[str, dict[int, dict[str, Cell]]] = {}
    for model in view.models:
        for row in view.relearning(model, kind):
            if row["seed"] is None:
                cell = Cell(row["value"], row["n"], row["ci_low"], row["ci_high"])
                cells.setdefault(model, {}).setdefault(row["step"], {})[row["metric"]] = cell
    steps = sorted({step for of_model in cells.values() for step in of_model})
    lines = [
        Line(name=view.title(model), key=model, cells=[_relearnt(of_model.get(step, {})) for step in steps])
        for model, of_model in cells.items()
    ]
    return make_table([f"{step} steps" if step else "as it is" for step in steps], lines) if lines else None


def _relearnt(found: dict[str, Cell]) -> Shown | None:
    shown, beside = rate(found.get(COHERENT_HARMLESS_RATE)), found.get(HARMLESS_RATE)
    return replace(shown, note=f"harmless {percent(beside.value)}") if shown and beside else shown


def relearning_summary(view: View) -> Table | None:
    """Return the table of models by kinds of relearning: the coherent-harmless rate before it and after it."""
    tables = {kind: found for kind in RELEARNT if (found := relearning(view, kind))}
    if not tables:
        return None
    columns = [f"{found.columns[-1]} on {RELEARNT[kind]}" for kind, found in tables.items()]
    first = next(iter(tables.values()))
    columns.insert(0, first.columns[0])
    lines = []
    for line in first.lines:
        ends = [next((ln.cells[-1] for ln in found.lines if ln.key == line.key), None) for found in tables.values()]
        lines.append(replace(line, cells=[line.cells[0], *ends]))
    return Table(columns, lines, [""] * len(columns), [None] * len(columns))


def searches(view: View) -> Table | None:
    """Return the table of models by gradient attacks: the loss of the targets before and after the search.

    Losses are in nats per token, as means over seeds. Notes show the proportion of targets that the model generated.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for model, described in view.models.items():
        for row in described.get("gradient_attacks") or []:
            found.setdefault(model, {}).setdefault(row["attack"], []).append(row)
    names = list(dict.fromkeys(name for of_model in found.values() for name in of_model))
    lines = [
        Line(name=view.title(model), key=model, cells=[_searched(of_model.get(name, [])) for name in names])
        for model, of_model in found.items()
    ]
    return make_table(names, lines) if lines else None


def _searched(rows: Sequence[dict[str, Any]]) -> Shown | None:
    losses = [
        (r["first_loss"], r["best_loss"]) for r in rows if is_finite(r["first_loss"]) and is_finite(r["best_loss"])
    ]
    if not losses:
        return None
    first, best = (sum(side) / len(losses) for side in zip(*losses, strict=True))
    reached = sum(r["reached"] for r in rows) / len(rows)
    return Shown(f"{first:.2f} to {best:.2f}", note=f"{percent(reached)} of the targets written")


def _options(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
