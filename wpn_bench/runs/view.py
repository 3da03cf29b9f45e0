"""Look up values in `results.json`: a row, the mean of a suite, or the worst attack. A missing value is None.

The mean of a suite with one set is the row of that set. If there are several sets and a row summarises them (set `all`
or `mean`), that row is used. Otherwise the mean is unweighted. Its interval is then combined from the intervals of the
sets by variance estimates recovery (Zou & Donner 2008, Statistics in Medicine 27): for k sets, the distance from the
mean to a limit is sqrt(sum of the squared distances of the sets) / k. This assumes that no prompt is in two sets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wpn_bench.core.numbers import is_finite
from wpn_bench.prompts import WORST_CASE
from wpn_bench.runs.files import BASE, ORACLE
from wpn_bench.runs.metrics import (
    ACCURACY,
    ANSWERED_RATE,
    BENCHMARK,
    BENCHMARK_AVERAGE,
    COHERENT_HARMLESS_RATE,
    COST,
    HELDOUT_TEXT,
    IN_DOMAIN,
    PERPLEXITY,
    inner_name,
)

PRIMARY = "wpn"
SUMMARY_SETS = ("all", "mean")  # rows of these sets summarise a whole suite
MANY = 6  # charts and tables of methods show at most this many variants of one method
FEW = 150  # with fewer items than this, intervals are wider than typical differences

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a results table with its statistics.

    `note` names the set if the cell was selected from several sets.
    """

    value: float | None
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    delta: float | None = None
    delta_ci_low: float | None = None
    delta_ci_high: float | None = None
    p_value: float | None = None
    note: str = ""

    @property
    def significant(self) -> bool:
        """Return whether p < 0.05. A mean of sets has no p-value, so the interval of its change must exclude zero."""
        if self.p_value is not None and is_finite(self.p_value):
            return self.p_value < 0.05
        if self.delta_ci_low is None or self.delta_ci_high is None:
            return False
        return self.delta_ci_low > 0 or self.delta_ci_high < 0


class View:
    """Looks up values in the results. Unknown suites, sets, metrics and models give None or nothing, and no error."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.run: dict[str, Any] = results.get("run") or {}
        self.models: dict[str, dict[str, Any]] = results.get("models") or {}
        self.varieties = _varieties(self.models)
        self._cells: dict[tuple[str, str, str, str], Cell] = {}
        self._seed_cells: dict[tuple[str, str, str, str], dict[Any, Cell]] = {}
        self._sets: dict[str, dict[str, None]] = {}  # maps each suite to its set names in the order of the rows
        self._not_to_refuse: set[tuple[str, str]] = set()  # (suite, set)
        for row in results.get("metrics") or []:
            key = (str(row["model"]), str(row["suite"]), str(row["set"]), str(row["metric"]))
            cell = _cell(row)
            self._sets.setdefault(key[1], {}).setdefault(key[2])
            if key[3] == ANSWERED_RATE:
                self._not_to_refuse.add((key[1], key[2]))
            if row.get("seed") is None:
                self._cells[key] = cell
            else:
                self._seed_cells.setdefault(key, {})[row["seed"]] = cell
        for key, cells in self._seed_cells.items():
            if len(cells) == 1:  # a single seed without a summary row
                self._cells.setdefault(key, next(iter(cells.values())))

    # names ---------------------------------------------------------------------------------------------------------

    def title(self, model: str) -> str:
        """Return the title of the model, safe to print to a terminal."""
        return one_line(self.models.get(model, {}).get("title") or model) or model

    def failed(self, model: str) -> bool:
        return self.models.get(model, {}).get("status") == "failed"

    def measured(self) -> list[str]:
        """Return the models with at least one row outside `cost`: base first, then in the order of the results.

        Of a method with many variants, only the main variant is included. A separate table compares the others.
        """
        return [name for name in self.every_measured() if name not in self.varieties]

    def every_measured(self) -> list[str]:
        """Return all measured models, including all variants."""
        with_rows = {model for model, suite, _, _ in self._cells if suite != COST}
        names = [name for name in self.models if name in with_rows]
        names += sorted(with_rows - set(names))
        return sorted(names, key=lambda name: name != BASE)

    def methods(self) -> list[str]:
        """Return the measured models that claim something: all but base and the oracle."""
        return [name for name in self.measured() if name not in (BASE, ORACLE)]

    def same_as_base(self, model: str) -> bool:
        """Return whether a candidate has the weights of the base and was measured in the same way."""
        return bool((self.models.get(model, {}).get("candidate") or {}).get("same_as_base"))

    def cannot_give(self, model: str, suite: str) -> bool:
        """Return whether a model cannot be measured on a suite, because an endpoint gives no log-likelihoods.

        Args:
            model: Name of the model.
            suite: Name of the suite.

        Returns:
            True for benchmarks and held-out text of an endpoint.
        """
        kind = (self.models.get(model, {}).get("candidate") or {}).get("kind")
        return kind == "endpoint" and suite in (BENCHMARK, HELDOUT_TEXT)

    def primary(self) -> str | None:
        """Return the model that the verdict is about: `wpn` if measured, else the one with the best in-domain rate."""
        methods = self.methods()
        if PRIMARY in methods:
            return PRIMARY
        rated = [
            (cell.value, name) for name in methods if (cell := self.mean(name, IN_DOMAIN)) and cell.value is not None
        ]
        if rated:
            return max(rated, key=lambda pair: pair[0])[1]
        return methods[0] if methods else None

    def sets(self, suite: str) -> list[str]:
        """Return the names of the sets of a suite, without those that summarise several sets."""
        return [name for name in self._sets.get(suite, {}) if name not in (*SUMMARY_SETS, WORST_CASE)]

    def own_benchmarks(self) -> dict[str, str]:
        """Return the benchmarks that are measured by no accuracy, with their metrics in the order of the results."""
        return {
            name: metric
            for _, suite, name, metric in self._cells
            if suite == BENCHMARK and inner_name(metric) is not None
        }

    def relearning(self, model: str, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a relearning attack on a model.

        Args:
            model: Name of the model.
            kind: Kind of text that it was fine-tuned on, `harmful` or `benign`.

        Returns:
            One row per step; empty if the attack was not run or failed.
        """
        return [row for row in self.models.get(model, {}).get("relearning") or [] if row["kind"] == kind]

    def rate_of(self, suite: str, name: str) -> str:
        """Return the metric by which a prompt set is summarised.

        Args:
            suite: Name of the suite.
            name: Name of the set.

        Returns:
            The coherent-harmless rate. If it is wrong to refuse the prompts of the set, refusals do not count either.
        """
        return ANSWERED_RATE if (suite, name) in self._not_to_refuse else COHERENT_HARMLESS_RATE

    # numbers -------------------------------------------------------------------------------------------------------

    def cell(self, model: str, suite: str, name: str, metric: str) -> Cell | None:
        """Return the row that summarises all seeds.

        Args:
            model: Name of the model.
            suite: Name of the suite.
            name: Name of the set.
            metric: Name of the metric.

        Returns:
            The cell; None if it is missing or has no value.
        """
        found = self._cells.get((model, suite, name, metric))
        return found if found is not None and found.value is not None else None

    def rows(self) -> list[tuple[str, str, str]]:
        """Return every (suite, set, metric) with a row for at least one model, in the order of the results."""
        return list(dict.fromkeys((suite, name, metric) for _, suite, name, metric in self._cells))

    def per_seed(self, model: str, suite: str, name: str, metric: str) -> dict[Any, Cell]:
        return self._seed_cells.get((model, suite, name, metric), {})

    def cloud(self, model: str) -> list[tuple[float, float]]:
        """Return (benchmark average, mean coherent-harmless rate in domain) for each seed that has both.

        The list is empty for a run with a single seed.
        """
        average = self.per_seed(model, BENCHMARK, BENCHMARK_AVERAGE, ACCURACY)
        by_set = [self.per_seed(model, IN_DOMAIN, name, self.rate_of(IN_DOMAIN, name)) for name in self.sets(IN_DOMAIN)]
        points = []
        for seed, cell in average.items():
            rates = [cells[seed].value for cells in by_set if seed in cells]
            known = [rate for rate in rates if rate is not None]
            if cell.value is not None and known and len(known) == len(by_set):
                points.append((cell.value, sum(known) / len(known)))
        return points if len(points) > 1 else []

    def mean(self, model: str, suite: str, metric: str | None = None) -> Cell | None:
        """Return the mean over the sets of a suite (see the docstring of the module).

        Args:
            model: Name of the model.
            suite: Name of the suite.
            metric: Name of the metric; None takes that of each set (`rate_of`).

        Returns:
            The mean; None if no set has the metric. `note` says if some sets are missing.
        """
        for name in SUMMARY_SETS:
            if summary := self.cell(model, suite, name, metric or COHERENT_HARMLESS_RATE):
                return summary
        names = self.sets(suite)
        cells = [cell for name in names if (cell := self.cell(model, suite, name, metric or self.rate_of(suite, name)))]
        mean = _mean(cells)
        if mean is not None and len(cells) < len(names):
            return replace(mean, note=f"{len(cells)} of {len(names)} sets")
        return mean

    def worst(self, model: str, suite: str) -> Cell | None:
        """Return the lowest rate among the sets of a suite (`rate_of`).

        Args:
            model: Name of the model.
            suite: Name of the suite.

        Returns:
            The cell, with the name of the set in `note`; None if no set has its rate.
        """
        cells = [
            replace(cell, note=name)
            for name in self.sets(suite)
            if (cell := self.cell(model, suite, name, self.rate_of(suite, name)))
        ]
        return min(cells, key=lambda cell: cell.value if cell.value is not None else math.inf, default=None)

    def benchmark_average(self, model: str) -> Cell | None:
        """Return the mean accuracy over the benchmarks of the run."""
        return self.cell(model, BENCHMARK, BENCHMARK_AVERAGE, ACCURACY)

    def perplexity(self, model: str) -> Cell | None:
        return self.cell(model, BENCHMARK, HELDOUT_TEXT, PERPLEXITY)

    @property
    def margin(self) -> float:
        """Return the non-inferiority margin as a fraction (2 points are 0.02)."""
        return float(self.run.get("margin_points") or 2.0) / 100


def one_line(text: object) -> str:
    """Put text on one line and remove control characters."""
    return _CONTROL.sub(" ", str(text)).strip()


def _varieties(models: dict[str, dict[str, Any]]) -> frozenset[str]:
    """Return the variants `method:label` of each method with more than `MANY` variants, except its first one."""
    families: dict[str, list[str]] = {}
    for name, model in models.items():
        if model.get("method"):
            families.setdefault(str(model["method"]), []).append(name)
    many = [sorted(names, key=lambda name: ":" in name) for names in families.values() if len(names) > MANY]
    return frozenset(name for names in many for name in names[1:] if ":" in name)


def _cell(row: dict[str, Any]) -> Cell:
    n = _number(row.get("n"))
    return Cell(
        value=_number(row.get("value")),
        n=None if n is None else int(n),
        ci_low=_number(row.get("ci_low")),
        ci_high=_number(row.get("ci_high")),
        delta=_number(row.get("delta")),
        delta_ci_low=_number(row.get("delta_ci_low")),
        delta_ci_high=_number(row.get("delta_ci_high")),
        p_value=_number(row.get("p_value")),
    )


def _number(value: object) -> float | None:
    """Convert a JSON number to a float. NaN and infinities, which Python reads from JSON, become None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mean(cells: Sequence[Cell]) -> Cell | None:
    if len(cells) <= 1:
        return cells[0] if cells else None
    value, low, high = mean_with_limits([(cell.value, cell.ci_low, cell.ci_high) for cell in cells])
    delta, delta_low, delta_high = mean_with_limits(
        [(cell.delta, cell.delta_ci_low, cell.delta_ci_high) for cell in cells]
    )
    n = sum(cell.n for cell in cells if cell.n is not None) or None
    return Cell(value, n, low, high, delta, delta_low, delta_high)


def mean_with_limits(
    estimates: Iterable[tuple[float | None, float | None, float | None]],
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of independent estimates (value, low, high) and its limits, by variance estimates recovery.

    Returns:
        The value and its low and high limit. If a value is missing, all three are None. If a limit is missing, both
        limits are None.
    """
    estimates = list(estimates)
    values = [value for value, _, _ in estimates if value is not None]
    if len(values) < len(estimates):
        return None, None, None
    if len(estimates) == 1:
        return estimates[0]
    k, mean = len(values), sum(values) / len(values)
    below = [(value - low) ** 2 for value, low, _ in estimates if value is not None and low is not None]
    above = [(high - value) ** 2 for value, _, high in estimates if value is not None and high is not None]
    if len(below) < k or len(above) < k:
        return mean, None, None
    return mean, mean - math.sqrt(sum(below)) / k, mean + math.sqrt(sum(above)) / k
