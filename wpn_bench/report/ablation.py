"""Ablation tables, which compare the variants of one method (`wpn`, `wpn:hidden-mean`, ...) by the options that differ.

If every combination of options was run (full factorial design), the main effect of each option is also shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from wpn_bench.analysis.verdict import damage
from wpn_bench.core.numbers import percent, points, signed_interval
from wpn_bench.report.cells import Shown, rate
from wpn_bench.runs.metrics import ATTACK, IN_DOMAIN, OUT_OF_DISTRIBUTION
from wpn_bench.runs.view import Cell, View

FEWEST = 3  # minimum number of variants for a table


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the table.

    Attributes:
        name: Heading of the column.
        hint: Text printed below the heading.
        of: Returns the cell of a model, or None.
        change: Whether to show the difference from base instead of the value.
    """

    name: str
    hint: str
    of: Callable[[str], Cell | None]
    change: bool = False

    def number(self, model: str) -> float | None:
        cell = self.of(model)
        return None if cell is None else cell.delta if self.change else cell.value

    def shown(self, model: str) -> Shown | None:
        cell = self.of(model)
        if cell is None or self.number(model) is None:
            return None
        if self.change:
            inner = signed_interval(cell.delta_ci_low, cell.delta_ci_high)
            return Shown(value=points(cell.delta).removesuffix(" points"), ci=inner, n=None)
        full = rate(cell)
        assert full is not None
        return Shown(value=full.value, ci=full.ci, note=full.note)


@dataclass(frozen=True, slots=True)
class Variety:
    """A row of the table: one variant of the method.

    Attributes:
        model: Name of the variant.
        levels: Its level of each factor as (text, number of rows that the cell spans). The number is 0 if a cell above
            spans this row.
        cells: One cell for each measure.
        fills: Length of the bar behind each cell, a rate from 0 to 1; None draws no bar.
        flag: How the model is damaged; empty if it is not.
    """

    model: str
    levels: list[tuple[str, int]]
    cells: list[Shown | None]
    fills: list[float | None]
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """The mean of each measure over the `n` variants with one level of a factor, and its range [lowest, highest]."""

    level: str
    n: int
    cells: list[Shown | None]


@dataclass(frozen=True, slots=True)
class Ablation:
    """The comparison of all variants of one method.

    `effects` is empty unless each combination of levels was run exactly once.
    """

    title: str
    factors: list[str]
    measures: list[Measure]
    rows: list[Variety]
    effects: list[tuple[str, list[Effect]]]


def ablations(view: View) -> list[Ablation]:
    """Return the tables of all methods with enough variants, in the order of the results."""
    families: dict[str, list[str]] = {}
    for name in view.every_measured():
        if method := view.models.get(name, {}).get("method"):
            families.setdefault(str(method), []).append(name)
    return [one for names in families.values() if len(names) >= FEWEST and (one := _ablation(view, names))]


def _ablation(view: View, names: list[str]) -> Ablation | None:
    factors = _factors(view, names)
    if not factors:
        return None
    order = {factor: list(dict.fromkeys(levels.values())) for factor, levels in factors.items()}
    names = sorted(names, key=lambda name: [order[factor].index(factors[factor][name]) for factor in factors])
    measures = [m for m in _measures(view) if any(m.number(name) is not None for name in names)]
    rows = [
        Variety(
            name,
            [
                (factors[factor][name], _span(factors, list(factors)[: i + 1], names, row))
                for i, factor in enumerate(factors)
            ],
            [m.shown(name) for m in measures],
            [None if m.change else m.number(name) for m in measures],
            damage(view, name) or "",
        )
        for row, name in enumerate(names)
    ]
    plain = min((view.title(name) for name in names), key=len).partition(" (")[0]
    return Ablation(plain, list(factors), measures, rows, list(_effects(factors, order, measures, names)))


def _measures(view: View) -> list[Measure]:
    ood, attacks = len(view.sets(OUT_OF_DISTRIBUTION)), len(view.sets(ATTACK))
    return [
        Measure("Coherent-harmless, in domain", "the headline", lambda m: view.mean(m, IN_DOMAIN)),
        Measure("Out of distribution", f"mean of {ood} sets", lambda m: view.mean(m, OUT_OF_DISTRIBUTION)),
        # All attacks use the same prompts, so their intervals cannot be combined to an interval of the mean.
        Measure("Under attack", f"mean of {attacks} attacks", lambda m: _without_interval(view.mean(m, ATTACK))),
        Measure("Benchmark average", "change in points", view.benchmark_average, change=True),
    ]


def _without_interval(cell: Cell | None) -> Cell | None:
    return replace(cell, ci_low=None, ci_high=None) if cell else None


def _factors(view: View, names: list[str]) -> dict[str, dict[str, str]]:
    """Return for each factor (an option that differs between the variants) the level of each model.

    Factors are in the order in which the method declares its options.
    """
    given: dict[str, dict[str, Any]] = {name: view.models[name].get("options") or {} for name in names}
    found = {}
    options = {option for one in given.values() for option in one}
    declared = list(view.models[names[0]].get("config") or {})
    for option in sorted(options, key=lambda o: (declared.index(o) if o in declared else len(declared), o)):
        levels = {name: _level(view, name, option, given[name]) for name in names}
        if len(set(map(str, levels.values()))) > 1:
            found[option] = _written(levels)
    return found


def _level(view: View, name: str, option: str, given: dict[str, Any]) -> Any:
    """Return the configured value of an option, or else the method's default.

    If tuning varied an option that is not configured, its level is the text `default`, because the recorded value is
    the tuned one.
    """
    model = view.models[name]
    tuned = any(option in trial.get("params", {}) for trial in (model.get("tuning") or {}).get("trials", ()))
    value = "default" if tuned else (model.get("config") or {}).get(option, "default")
    value = given.get(option, value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _written(levels: dict[str, Any]) -> dict[str, str]:
    """Return the levels as text.

    If an option is 0 or None in some variants and one other value in all others, they are `off` and `on`.
    """
    values = set(levels.values())
    switch = len(values) == 2 and any(v in (0, None) for v in values) and not any(isinstance(v, bool) for v in values)
    if switch:
        return {name: "off" if value in (0, None) else "on" for name, value in levels.items()}
    return {
        name: ("on" if value else "off") if isinstance(value, bool) else str(value) for name, value in levels.items()
    }


def _span(factors: dict[str, dict[str, str]], upto: list[str], names: list[str], row: int) -> int:
    """Return the number of consecutive rows from `row` with the same levels of the factors `upto`.

    The number is 0 if the previous row also has these levels.
    """

    def key(name: str) -> list[str]:
        return [factors[factor][name] for factor in upto]

    if len(upto) == len(factors):
        return 1  # the level of the last factor is printed in every row
    if row and key(names[row - 1]) == key(names[row]):
        return 0
    return next((n for n in range(1, len(names) - row) if key(names[row + n]) != key(names[row])), len(names) - row)


def _effects(
    factors: dict[str, dict[str, str]], order: dict[str, list[str]], measures: list[Measure], names: list[str]
) -> Iterator[tuple[str, list[Effect]]]:
    run = sorted(tuple(factors[factor][name] for factor in factors) for name in names)
    if len(factors) < 2 or run != sorted(product(*order.values())):
        return
    for factor, levels in order.items():
        mine = {level: [name for name in names if factors[factor][name] == level] for level in levels}
        yield factor, [Effect(level, len(those), [_mean(m, those) for m in measures]) for level, those in mine.items()]


def _mean(measure: Measure, names: list[str]) -> Shown | None:
    numbers = [number for name in names if (number := measure.number(name)) is not None]
    if len(numbers) < len(names):
        return None  # means over different variants are not comparable
    mean, low, high = sum(numbers) / len(numbers), min(numbers), max(numbers)
    if measure.change:
        return Shown(value=points(mean).removesuffix(" points"), ci=signed_interval(low, high))
    return Shown(value=percent(mean), ci=f"[{100 * low:.1f}, {100 * high:.1f}]")
