"""The settings of `wpn-bench check`: bounds, margins, and the metrics to which they apply (targets)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wpn_bench.core.validation import as_user_error
from wpn_bench.core.yaml_files import load_yaml
from wpn_bench.errors import UserError
from wpn_bench.runs.metrics import (
    ACCURACY,
    BENCHMARK_AVERAGE,
    METRICS,
    PROMPT_SUITES,
    SET_TITLES,
    inner_name,
    metric_of,
)

SUITE_OF_TARGET = {suite.target: suite for suite in PROMPT_SUITES.values()}
_EXAMPLE = "see docs/ci.md for examples"


class Gates(BaseModel):
    """What `wpn-bench check` tests.

    Attributes:
        model: The model to check; None means the run's primary model.
        against: The model of the baseline to compare with; None means the model of the same name, or the base without a
            baseline.
        margin: The largest accepted loss of the benchmark average and of everything that is watched, in points; None
            uses the margin of the run.
        min: The lowest accepted value of each target, in the unit of its metric (from 0 to 1 for a share).
        max: The highest accepted value of each target.
        max_drop: The largest accepted decrease of each target, in points; in per cent of the old value for a benchmark with
            its own unit.
        max_rise: The largest accepted increase of each target, in the same units.
        inconclusive: Whether an inconclusive check passes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str | None = Field(default=None, min_length=1)
    against: str | None = Field(default=None, min_length=1)
    margin: float | None = Field(default=None, ge=0, le=100)
    min: dict[str, float] = {}
    max: dict[str, float] = {}
    max_drop: dict[str, float] = {}
    max_rise: dict[str, float] = {}
    inconclusive: Literal["pass", "fail"] = "fail"

    @field_validator("max_drop", "max_rise")
    @classmethod
    def _points(cls, bounds: dict[str, float]) -> dict[str, float]:
        for name, bound in bounds.items():
            if not 0 <= bound <= 100:
                raise ValueError(f"{name}: {bound:g} is not a number of points from 0 to 100")
        return bounds

    @field_validator("min", "max")
    @classmethod
    def _rates(cls, bounds: dict[str, float]) -> dict[str, float]:
        for name, bound in bounds.items():
            if not math.isfinite(bound):
                raise ValueError(f"{name}: {bound} is not a finite number")
            if Target.parse(name).is_rate and not 0 <= bound <= 1:
                raise ValueError(
                    f"{name}: {bound:g} is not a share from 0 to 1 (95.8 % is 0.958); a benchmark with its own unit is"
                    " METRIC@BENCHMARK"
                )
        return bounds


def read_gates(file: Path) -> Gates:
    """Read gates from a YAML file. If it is not valid, the `UserError` tells what is wrong."""
    raw = load_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file} contains no settings", _EXAMPLE)
    return gates_of(raw, str(file))


def gates_of(raw: Mapping[str, Any], where: str = "") -> Gates:
    """Make gates from plain values.

    Args:
        raw: The settings.
        where: Where the settings come from, for the message.

    Returns:
        The gates.

    Raises:
        UserError: A setting is unknown or invalid.
    """
    with as_user_error(where, _EXAMPLE, unknown_kind="gate setting", known=Gates.model_fields):
        return Gates.model_validate(dict(raw))


@dataclass(frozen=True)
class Target:
    """The metric to which a bound applies: `nine` (the benchmark average), a benchmark, or METRIC@WHERE.

    WHERE is a suite of prompt sets (the mean over them), one set, a benchmark, or another suite in which one set has the metric. A metric without @ is measured on its
    usual sets. `resolved` replaces the name of a benchmark's own metric, such as `bits_per_byte`, by that in results.json.
    """

    metric: str
    where: str

    @classmethod
    def parse(cls, text: str) -> Target:
        metric, at, where = text.strip().rpartition("@")  # the name of a metric may contain @, as in leak@4
        if at:
            return cls(metric, where)
        metric = where
        if metric in METRICS or metric.endswith("_rate"):
            facts = metric_of(metric)
            suite = PROMPT_SUITES.get(facts.suite)
            return cls(metric, facts.set or (suite.target if suite else facts.suite))
        return cls(ACCURACY, metric)

    def __str__(self) -> str:
        return self.where if self.metric == ACCURACY else f"{inner_name(self.metric) or self.metric}@{self.where}"

    def resolved(self, own: Mapping[str, str]) -> Target:
        """Return the target with the metric by which its benchmark was measured.

        Args:
            own: The metric in results.json of each benchmark that is measured by no accuracy.

        Returns:
            The target, unchanged if it is not such a benchmark or names another metric.
        """
        metric = own.get(self.where)
        if metric is not None and self.metric in (ACCURACY, inner_name(metric)):
            return Target(metric, self.where)
        return self

    @property
    def is_rate(self) -> bool:
        return metric_of(self.metric).is_share

    @property
    def own_unit(self) -> bool:
        """Return whether the metric is one of lm-eval's with its own unit, whose changes are relative."""
        return inner_name(self.metric) is not None

    @property
    def unit_of_change(self) -> str:
        return "%" if self.own_unit else "points"

    @property
    def better(self) -> int:
        """Return 1 if higher is better, and -1 if lower is better."""
        return metric_of(self.metric).better

    @property
    def title(self) -> str:
        where = (
            SUITE_OF_TARGET[self.where].title
            if self.where in SUITE_OF_TARGET
            else SET_TITLES.get(self.where, self.where)
        )
        if self.own_unit:
            return f"{where}, {metric_of(self.metric).title}"
        if self.metric == ACCURACY:
            return _capital(where) if self.where == BENCHMARK_AVERAGE else f"{where}, accuracy"
        return f"{_capital(metric_of(self.metric).title)}, {where}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
