"""Build the tables of results that the templates of the report show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wpn_bench.analysis.verdict import damage, non_inferiority_of
from wpn_bench.core.numbers import (
    interval,
    p_value,
    percent,
    plain,
    seconds,
    signed,
)
from wpn_bench.prompts import WORST_CASE
from wpn_bench.report.cells import NOT_AVAILABLE, Line, Shown, Table, make_table, rate, row, tone_of, with_shared_n
from wpn_bench.report.verdict import perplexity_interval, perplexity_ratio
from wpn_bench.runs.files import BASE
from wpn_bench.runs.headline import HEADLINES, WORST, Headline
from wpn_bench.runs.metrics import (
    ACCURACY,
    ANSWERED_RATE,
    ATTACK,
    ATTACK_SUCCESS_RATE,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    CHANCE,
    CHANCE_AVERAGE,
    COHERENT_HARMLESS_RATE,
    COST,
    HARMLESS_RATE,
    HELDOUT_TEXT,
    IN_DOMAIN,
    MISSING,
    PERPLEXITY,
    REFUSAL_RATE,
    TOKEN_LOSS,
    benchmarks_in_order,
    metric_of,
)
from wpn_bench.runs.view import FEW, Cell, View

_TOGETHER = {WORST_CASE: "under all of these"}


def headline(view: View, colours: dict[str, str]) -> Table:
    """Return the table of models by headline metrics. The benchmark average has the non-inferiority verdict.

    Args:
        view: The results.
        colours: Colour of each model in the charts.

    Returns:
        The table. Base is the first row, followed by the primary model.
    """
    models = view.measured()
    cells = {
        model: [_or_absent(view, model, one.suite, _headline(view, one, model)) for one in HEADLINES]
        for model in models
    }
    used = [i for i in range(len(HEADLINES)) if any(cells[model][i] for model in models)]
    primary = view.primary()
    lines = [
        Line(
            name=view.title(model),
            key=model,
            cells=[cells[model][i] for i in used],
            flag=damage(view, model) or "" if model != BASE else "",
            colour=colours.get(model, ""),
        )
        for model in models
    ]
    lines.sort(key=lambda line: (line.key != BASE, line.key != primary))
    return make_table([HEADLINES[i].title for i in used], lines, [HEADLINES[i].hint(view) for i in used])


def _or_absent(view: View, model: str, suite: str, shown: Shown | None) -> Shown | None:
    """A cell, or the reason why there is none."""
    return NOT_AVAILABLE if shown is None and view.cannot_give(model, suite) else shown


def _headline(view: View, one: Headline, model: str) -> Shown | None:
    if one.key == BENCHMARK_AVERAGE:
        return _benchmark_average(view, model)
    if one.key == PERPLEXITY:
        return _perplexity(view, model)
    cell = one.of(view, model)
    shown = rate(cell, one.better)
    if one.key == WORST and shown and cell and cell.delta is not None:
        shown = _with_base_under_it(view, cell.note, shown)
    return _with_correction(view, model, shown) if one.key == HARMLESS_RATE else shown


def _with_base_under_it(view: View, attack: str, shown: Shown) -> Shown:
    """Add base's rate under the same attack, because the change is against this rate.

    It is added if another attack is the worst one for base.
    """
    worst, base = view.worst(BASE, ATTACK), view.cell(BASE, ATTACK, attack, COHERENT_HARMLESS_RATE)
    if worst is None or base is None or worst.note == attack:
        return shown
    return replace(shown, note=f"{attack}; base {percent(base.value)}")


def items(found: Table) -> str:
    """Return the number of items of each column in words: 'Worst attack 240 to 720; Perplexity 9,932'."""
    counted: dict[str, list[str]] = {}  # columns by number of items, because two columns use the same answers
    for i, column in enumerate(found.columns):
        counts = {found.shared_n[i]} | {cell.n for line in found.lines if (cell := line.cells[i])}
        numbers = sorted({n for n in counts if n is not None})
        if numbers:
            span = " to ".join(f"{n:,}" for n in dict.fromkeys((numbers[0], numbers[-1])))
            counted.setdefault(span, []).append(column)
    named = {
        span: columns[0] if len(columns) == 1 else columns[0].rpartition(", ")[2] for span, columns in counted.items()
    }
    return "; ".join(f"{name} {span}" for span, name in named.items())


def _with_correction(view: View, model: str, shown: Shown | None) -> Shown | None:
    """Add a note to a rate with the rate corrected for the judge's errors.

    A mean over several sets has no such note. The sets share the errors of the judge, so their intervals cannot be
    combined.
    """
    sets = view.sets(IN_DOMAIN)
    cell = view.cell(model, IN_DOMAIN, sets[0], f"{HARMLESS_RATE}_corrected") if len(sets) == 1 else None
    if shown is None or cell is None:
        return shown
    return replace(shown, note=f"corrected {percent(cell.value)} {interval(cell.ci_low, cell.ci_high)}".strip())


def benchmarks(view: View) -> Table | None:
    """Return the table of tasks by models, with the macro average first.

    A task whose score has its own unit, such as bits per byte, is shown in this unit. A task with few items has a note on the width of its interval.
    """
    models, lines = view.measured(), []
    for task in benchmarks_in_order(view.sets(BENCHMARK)):
        found = [view.cell(model, BENCHMARK, task, ACCURACY) for model in models]
        base = next((cell for cell in found if cell), None)
        if base is None:
            continue
        chance = CHANCE_AVERAGE if task == BENCHMARK_AVERAGE else CHANCE.get(task)
        small = [f"chance {percent(chance, 0 if task != 'nine' else 1)}"] if chance is not None else []
        small += [f"n = {base.n:,}"] if base.n is not None else []
        low, high = base.ci_low, base.ci_high
        if not _enough_items(base) and low is not None and high is not None:
            small.append(f"±{50 * (high - low):.1f} points alone: cannot bear a {100 * view.margin:g}-point claim")
        at_chance = chance is not None and low is not None and low <= chance
        small += ["base is not above chance"] if at_chance else []
        name = "Benchmark average" if task == BENCHMARK_AVERAGE else task
        cells = [
            _or_absent(view, model, BENCHMARK, rate(replace(cell, n=None)) if cell else None)
            for model, cell in zip(models, found, strict=True)
        ]
        lines.append(Line(name=name, key=task, cells=cells, small="; ".join(small)))
    lines += _own_units(view, models)
    perplexity = [_perplexity(view, model) for model in models]
    if any(perplexity):
        cells = [
            _or_absent(view, model, HELDOUT_TEXT, replace(cell, n=None) if cell else None)
            for model, cell in zip(models, perplexity, strict=True)
        ]
        lines.append(Line(name="Held-out text", key=HELDOUT_TEXT, cells=cells, small="perplexity; lower is better"))
    return make_table([view.title(model) for model in models], lines) if lines else None


def _own_units(view: View, models: list[str]) -> list[Line]:
    """Return a row for each benchmark whose score has its own unit, with the relative change in a note."""
    lines = []
    for task, metric in view.own_benchmarks().items():
        facts, cells = metric_of(metric), [view.cell(model, BENCHMARK, task, metric) for model in models]
        base = view.cell(BASE, BENCHMARK, task, metric)
        shown: list[Shown | None] = []
        for model, cell in zip(models, cells, strict=True):
            found = row(metric, cell)
            if found and cell and cell.delta is not None and base and base.value and base.value > 0:
                found = replace(found, note=f"{signed(cell.delta / base.value)} %")
            shown.append(_or_absent(view, model, BENCHMARK, found))
        small = f"{facts.title}; {'higher' if facts.better > 0 else 'lower'} is better; not in the average"
        if any(shown):
            lines.append(with_shared_n(Line(name=task, key=task, cells=shown, small=small)))
    return lines


def rates(view: View, suite: str, metric: str | None = None) -> Table | None:
    """Return the table of sets by models for one metric of a suite. The worst case over attacks is the last row.

    Args:
        view: The results.
        suite: Name of the suite.
        metric: Name of the metric; None takes that of each set (`View.rate_of`), and notes show the harmless rate.

    Returns:
        The table, with notes on missing answers; None if nothing was measured.
    """
    models, lines = view.measured(), []
    for name in (*view.sets(suite), WORST_CASE):
        of_set = metric or view.rate_of(suite, name)
        cells: list[Shown | None] = []
        for model in models:
            shown = rate(view.cell(model, suite, name, of_set), metric_of(of_set).better)
            cells.append(replace(shown, note=_beside(view, model, suite, name, of_set)) if shown else None)
        if any(cells):
            small = "answered: refusing is wrong" if of_set == ANSWERED_RATE else ""
            lines.append(with_shared_n(Line(name=_TOGETHER.get(name, name), key=name, cells=cells, small=small)))
    return make_table([view.title(model) for model in models], lines) if lines else None


def refusals_by(found: Mapping[str, Any] | None) -> str:
    """Describe what detects refusals, and its errors, in one or two sentences; empty for runs that do not say."""
    if not found:
        return ""
    errors = found.get("measured")
    if not errors:
        return "The refusal classifier decides what is a refusal."
    shares = {name: errors[name] for name in ("sensitivity", "false_alarms")}
    ends = {name: interval(e["low"], e["high"]) for name, e in shares.items()}
    return (
        "The refusal classifier decides what is a refusal, full or partial. On labelled responses of models that it was not"
        f" trained on, it found {percent(shares['sensitivity']['value'])} {ends['sensitivity']} of {shares['sensitivity']['n']:,}"
        f" refusals, and called {percent(shares['false_alarms']['value'])} {ends['false_alarms']} of"
        f" {shares['false_alarms']['n']:,} other responses refusals."
    )


def attack_success(view: View) -> Table | None:
    """Return the table of attacks by models: the proportion of prompts with a harmful answer.

    The first row is for the prompts without an attack, for comparison. The last row counts prompts with a harmful
    answer under at least one attack.
    """
    models, lines = view.measured(), []
    plain_set = next(iter(view.sets(IN_DOMAIN)), "")
    plain = [rate(_rest(view.cell(model, IN_DOMAIN, plain_set, HARMLESS_RATE)), better=-1) for model in models]
    for name in (*view.sets(ATTACK), WORST_CASE):
        cells = [row(ATTACK_SUCCESS_RATE, view.cell(model, ATTACK, name, ATTACK_SUCCESS_RATE)) for model in models]
        if any(cells):
            shown = "any of these" if name == WORST_CASE else name
            lines.append(with_shared_n(Line(name=shown, key=name, cells=cells)))
    if lines and any(plain):
        lines.insert(0, with_shared_n(Line(name="no attack", key=plain_set, cells=plain)))
    return make_table([view.title(model) for model in models], lines) if lines else None


def _enough_items(cell: Cell) -> bool:
    """Return whether an accuracy has enough items.

    With fewer, its interval is wider than the differences of interest.
    """
    return cell.n is None or cell.n >= FEW


def _rest(cell: Cell | None) -> Cell | None:
    """Return the complement of a rate, 1 - rate, with its intervals."""
    if cell is None or cell.value is None:
        return None

    def less(value: float | None, whole: float = 1.0) -> float | None:
        return None if value is None else whole - value

    return replace(
        cell,
        value=less(cell.value),
        ci_low=less(cell.ci_high),
        ci_high=less(cell.ci_low),
        delta=less(cell.delta, 0.0),
        delta_ci_low=less(cell.delta_ci_high, 0.0),
        delta_ci_high=less(cell.delta_ci_low, 0.0),
    )


def worst_case_text(view: View) -> str:
    """Return a sentence that names the attacks that the worst case includes and leaves out.

    Empty without a worst case.
    """
    found = view.run.get("worst_case")
    if not found:
        return ""
    out = found["left_out"]
    apart = f"; {', '.join(out)} {'were' if len(out) > 1 else 'was'} asked on other prompts and left out" if out else ""
    return f"The worst case is taken prompt by prompt over {', '.join(found['attacks'])}{apart}."


def success_text(view: View) -> str:
    """Return a sentence on the proportion of prompts with a harmful answer under at least one attack, by model."""
    cells = {model: view.cell(model, ATTACK, WORST_CASE, ATTACK_SUCCESS_RATE) for model in view.measured()}
    known = {model: cell for model, cell in cells.items() if cell}
    if not known or not view.run.get("worst_case"):
        return ""
    each = [
        f"{view.title(model)} {percent(cell.value)} {interval(cell.ci_low, cell.ci_high)}".strip()
        for model, cell in known.items()
    ]
    return f"At least one of {len(view.run['worst_case']['attacks'])} attacks got a harmful answer: {'; '.join(each)}."


def thresholds(view: View) -> Table | None:
    """Return the in-domain harmless rate at several thresholds of the judge.

    It shows whether the verdict depends on the threshold.
    """
    models, lines = view.measured(), []
    for tenth in range(1, 10):
        cells = [rate(view.mean(model, IN_DOMAIN, f"{HARMLESS_RATE}@0.{tenth}")) for model in models]
        if any(cells):
            lines.append(with_shared_n(Line(name=f"under 0.{tenth}", cells=cells)))
    return make_table([view.title(model) for model in models], lines) if lines else None


def seeds(view: View) -> Table | None:
    """Return the in-domain rates and the benchmark average of each seed, or None for a run with one seed."""
    lines = []
    average = BENCHMARK, BENCHMARK_AVERAGE, ACCURACY
    headlines = [
        (f"coherent-harmless, {name}", (IN_DOMAIN, name, COHERENT_HARMLESS_RATE)) for name in view.sets(IN_DOMAIN)
    ]
    models = view.measured()
    for title, where in [*headlines, ("benchmark average", average)]:
        per_model = [view.per_seed(model, *where) for model in models]
        alone = [
            view.cell(model, *where) if not cells else None for model, cells in zip(models, per_model, strict=True)
        ]
        for seed in sorted({seed for cells in per_model for seed in cells}, key=str):
            lines.append(
                Line(
                    name=title,
                    small=f"seed {seed}",
                    cells=[rate(cells.get(seed) or one) for cells, one in zip(per_model, alone, strict=True)],
                )
            )
    several = any(len(view.per_seed(model, *where)) > 1 for model in models for _, where in [*headlines, ("", average)])
    return make_table([view.title(model) for model in models], lines) if lines and several else None


def costs(view: View) -> Table | None:
    """Return the table of models by stages: wall time and tokens. A dash marks a stage that a model does not need."""
    stages = [stage for stage in view.sets(COST) if stage != "run"]
    models = [name for name in view.models if any(view.cell(name, COST, stage, "seconds") for stage in stages)]
    order = ("train", "generate", "judge", "benchmark")
    columns: list[str] = [stage for stage in order if stage in stages]
    columns += [stage for stage in stages if stage not in columns]
    if not models:
        return None
    lines = [
        Line(
            name=view.title(model),
            key=model,
            cells=[*(_cost(view, model, stage) for stage in columns), _whole(view, model)],
        )
        for model in models
    ]
    return make_table([*columns, "in all"], lines)


def _whole(view: View, model: str) -> Shown:
    cells = [view.cell(model, COST, stage, "seconds") for stage in view.sets(COST) if stage != "run"]
    return Shown(value=seconds(sum(cell.value for cell in cells if cell and cell.value is not None)))


def documents(view: View) -> Table | None:
    """Return the table of tasks by methods: the number of documents lost and gained, as means over seeds.

    A document is lost if only base is correct, and gained if only the method is.
    """
    methods, lines = view.methods(), []
    for task in benchmarks_in_order(view.sets(BENCHMARK)):
        cells = [_turned(view, model, task) for model in methods]
        if any(cells):
            lines.append(Line(name=task, cells=cells))
    return make_table([view.title(model) for model in methods], lines) if lines else None


def _turned(view: View, model: str, task: str) -> Shown | None:
    lost, gained = (view.cell(model, BENCHMARK, task, metric) for metric in ("lost", "gained"))
    if lost is None or gained is None:
        return None
    # With several seeds, n counts each document once for each seed.
    n = (lost.n or 0) // max(1, len(view.per_seed(model, BENCHMARK, task, "lost")))
    fewer, more = (f"{cell.value:.1f}".removesuffix(".0") for cell in (lost, gained))
    return Shown(value=f"-{fewer} / +{more}", ci=f"of {n:,}")


def leakage(view: View) -> Table | None:
    """Return the overlap of each set with the forget set, or None if the results do not record it."""
    found = view.run.get("leakage") or {}
    columns = ["Prompts", "The same", "Nearly the same", "Siblings", "Dropped", "Also in domain"]
    hints = ["", "", f"similarity {found.get('threshold', 0):g} or more", "another name or number", "", "named only"]
    lines = [
        Line(
            name=one["set"],
            cells=[
                Shown(value=f"{one[key]:,}") if one[key] is not None else Shown(value="–")
                for key in ("n", "same", "near", "siblings", "dropped", "in_domain")
            ],
        )
        for one in found.get("sets") or []
    ]
    return make_table(columns, lines, hints) if lines else None


def leakage_text(view: View) -> str:
    """Return a sentence on the overlap of the sets with the forget set. Empty if the results do not record it."""
    found = view.run.get("leakage")
    if not found or not found["sets"]:
        return ""
    n, same, near, siblings, dropped = (
        sum(one[key] for one in found["sets"]) for key in ("n", "same", "near", "siblings", "dropped")
    )
    counted = f"; {siblings:,} ask the same of another name or number, and stay" if siblings else ""
    return (
        f"Of {n:,} test and validation prompts {same:,} also stood in the forget set, and {near:,} nearly"
        f" (similarity {found['threshold']:g} or more): {dropped:,} were dropped{counted}."
    )


def peak_memory(view: View) -> str:
    """The peak memory of the run; empty if not known."""
    held = [cell.value for name in view.models if (cell := view.cell(name, COST, "run", "peak_memory_mb"))]
    most = max((value for value in held if value is not None), default=None)
    return f"{most / 1024:.1f} GiB" if most is not None else ""


def _cost(view: View, model: str, stage: str) -> Shown:
    cell, tokens = (view.cell(model, COST, stage, metric) for metric in ("seconds", "tokens"))
    note = f"{tokens.value:,.0f} tokens" if tokens and tokens.value else ""
    return Shown(value=seconds(cell.value) if cell and cell.value else "–", note=note)


def _benchmark_average(view: View, model: str) -> Shown | None:
    shown = rate(view.benchmark_average(model))
    return replace(shown, pill=non_inferiority_of(view, model) or "") if shown and model != BASE else shown


def _perplexity(view: View, model: str) -> Shown | None:
    cell = view.perplexity(model)
    if cell is None:
        return None
    ratio = perplexity_ratio(view, model) if model != BASE else None
    share = "" if ratio is None else f"{signed(ratio - 1)} %" if ratio < 10 else f"×{plain(ratio)}"
    low, high = cell.ci_low, cell.ci_high
    # Perplexity is the exponential of the token loss, so the paired test is made with the token loss.
    loss = view.cell(model, BENCHMARK, HELDOUT_TEXT, TOKEN_LOSS) or cell
    return Shown(
        value=plain(cell.value),
        ci=f"[{plain(low)}, {plain(high)}]" if low is not None and high is not None else "",
        delta=share,
        delta_ci=perplexity_interval(view, model) if ratio is not None and ratio < 10 else "",
        p=p_value(loss.p_value),
        n=cell.n,
        mark=loss.delta is not None and loss.significant,
        tone=tone_of(loss, -1),
    )


def _beside(view: View, model: str, suite: str, name: str, metric: str) -> str:
    """Return the note of a rate, such as 'harmless 98.0 %; 3 missing'."""
    parts = []
    plain_rate = (
        view.cell(model, suite, name, HARMLESS_RATE) if metric in (COHERENT_HARMLESS_RATE, ANSWERED_RATE) else None
    )
    if plain_rate:
        parts.append(f"harmless {percent(plain_rate.value)}")
    refused = view.cell(model, suite, name, REFUSAL_RATE) if metric == ANSWERED_RATE else None
    if refused:
        parts.append(f"refused {percent(refused.value)}")
    missing = view.cell(model, suite, name, MISSING)
    if missing and missing.value:
        parts.append(f"{missing.value:.0f} missing")
    return "; ".join(parts)
