"""Settings of `wpn-bench check`: bounds, margins, and their targets."""

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
    metric_of,
)

SUITE_OF_TARGET = {suite.target: suite for suite in PROMPT_SUITES.values()}
_EXAMPLE = "see docs/ci.md for examples"


class Gates(BaseModel):
    """What is checked.

    Attributes:
        model: The model to check; None: the run's primary model.
        against: The model of the baseline to compare with; None: the one of the same name, without a baseline the base.
        margin: The largest accepted loss of the benchmark average and of all that is watched, in points; None: the run's.
        min: Target -> the value that it must reach, in the metric's own unit (a share: 0 to 1).
        max: Target -> the value that it must not exceed.
        max_drop: Target -> the largest accepted drop, in points.
        max_rise: Target -> the largest accepted rise, in points.
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
                raise ValueError(f"{name}: {bound:g} is not a share from 0 to 1 (95.8 % is 0.958)")
        return bounds


def read_gates(file: Path) -> Gates:
    """Gates from a YAML file; `UserError` names what is wrong in it."""
    raw = load_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds no settings", _EXAMPLE)
    return gates_of(raw, str(file))


def gates_of(raw: Mapping[str, Any], where: str = "") -> Gates:
    """Make gates from plain values.

    Args:
        raw: The settings.
        where: Their source, for the message.

    Returns:
        The gates.

    Raises:
        UserError: A setting is unknown or invalid.
    """
    with as_user_error(where, _EXAMPLE, unknown_kind="gate setting", known=Gates.model_fields):
        return Gates.model_validate(dict(raw))


@dataclass(frozen=True)
class Target:
    """What a bound applies to: `nine` (the benchmark average), a benchmark, or METRIC@WHERE.

    WHERE is a suite of prompt sets (the mean over them), one set, or, for `accuracy`, a benchmark. A metric without @ is
    measured on its usual sets.
    """

    metric: str
    where: str

    @classmethod
    def parse(cls, text: str) -> Target:
        metric, at, where = text.strip().partition("@")
        if at:
            return cls(metric, where)
        if metric in METRICS or metric.endswith("_rate"):
            facts = metric_of(metric)
            return cls(metric, facts.set or PROMPT_SUITES[facts.suite].target)
        return cls(ACCURACY, metric)

    def __str__(self) -> str:
        return self.where if self.metric == ACCURACY else f"{self.metric}@{self.where}"

    @property
    def is_rate(self) -> bool:
        return metric_of(self.metric).is_share

    @property
    def better(self) -> int:
        """1 if higher is better, -1 if lower is better."""
        return metric_of(self.metric).better

    @property
    def title(self) -> str:
        where = (
            SUITE_OF_TARGET[self.where].title
            if self.where in SUITE_OF_TARGET
            else SET_TITLES.get(self.where, self.where)
        )
        if self.metric == ACCURACY:
            return _capital(where) if self.where == BENCHMARK_AVERAGE else f"{where}, accuracy"
        return f"{_capital(metric_of(self.metric).title)}, {where}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
