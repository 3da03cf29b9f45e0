"""The questions of `wpn-bench check` and their outcomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from wpn_bench.analysis.gates import Target
from wpn_bench.analysis.verdict import Outcome
from wpn_bench.core.numbers import percent, plain, points, signed, signed_interval
from wpn_bench.errors import EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION


@dataclass(frozen=True)
class Finding:
    """One question and its outcome.

    Attributes:
        target: The metric and where it was measured.
        kind: Whether the question is about a change or an absolute bound (`min`, `max`).
        required: Whether the requirement must be shown. If not, it is only watched.
        outcome: The outcome.
        bound: The bound, in the unit of `value`.
        value: The change (a fraction, new minus old), or for an absolute bound the metric. For a metric with its own unit,
            the change is divided by the old value.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        n: Number of items.
        reason: Why the outcome is as it is, for messages.
        old: Value of the baseline.
        new: Value of the run.
        p_value: One-sided p-value of the hypothesis "it got worse by no more than the bound", with Holm's correction.
        unjudged: Number of answers without a judgement that could change the verdict.
        complete: Whether both sides were measured on all items.
    """

    target: Target
    kind: Literal["change", "min", "max"]
    required: bool
    outcome: Outcome
    bound: float
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    reason: str
    old: float | None = None
    new: float | None = None
    p_value: float | None = None
    unjudged: int = 0
    complete: bool = True

    @property
    def figure(self) -> str:
        """Return the change or the value as text, with its interval: '-43.4 points [-45.2, -40.7]'."""
        if self.value is None:
            return "not known"
        if self.kind == "change":
            inner = signed_interval(self.low, self.high)
            change = f"{signed(self.value)} %" if self.target.own_unit else points(self.value)
            return f"{change}{' ' + inner if inner else ''}"
        shape = percent if self.target.is_rate else plain
        return f"{shape(self.value)}{f' [{shape(self.low)}, {shape(self.high)}]' if self.low is not None else ''}"

    @property
    def limit(self) -> str:
        """Return the bound as text: '-2 points', '>= 95.8 %'."""
        if self.kind == "change":
            return f"{'-' if self.target.better > 0 else '+'}{100 * self.bound:g} {self.target.unit_of_change}"
        shape = percent if self.target.is_rate else plain
        return f"{'>=' if self.kind == 'min' else '<='} {shape(self.bound)}"

    def json(self) -> dict[str, Any]:
        plain_ = {k: v for k, v in vars(self).items() if k != "target"}
        return {"target": str(self.target), "title": self.target.title} | {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain_.items()
        }


@dataclass(frozen=True)
class Checked:
    """All findings and the verdict that follows from them. `notes` are further facts that the user must know."""

    model: str
    against: str
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    tolerant: bool = False

    @property
    def outcome(self) -> Outcome:
        found = {f.outcome for f in self.findings}
        return (
            Outcome.REGRESSION
            if Outcome.REGRESSION in found
            else Outcome.INCONCLUSIVE
            if Outcome.INCONCLUSIVE in found
            else Outcome.PASS
        )

    @property
    def exit_code(self) -> int:
        if self.outcome == Outcome.INCONCLUSIVE:
            return EXIT_OK if self.tolerant else EXIT_INCONCLUSIVE
        return EXIT_REGRESSION if self.outcome == Outcome.REGRESSION else EXIT_OK

    @property
    def sentence(self) -> str:
        """Return one line with the verdict and its reasons."""
        mine = [f for f in self.findings if f.outcome == self.outcome]
        said = "; ".join(f"{f.target.title} {f.figure}" for f in mine[:5] if self.outcome != Outcome.PASS)
        said += f"; and {len(mine) - 5} more" if len(mine) > 5 and self.outcome != Outcome.PASS else ""
        held = f"{self.model} against {self.against}" if self.against else self.model
        required = sum(f.required for f in self.findings)
        told = said or f"{required} shown, {len(self.findings) - required} watched without a drop"
        return f"{self.outcome}: {held}: {told}"

    def json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "verdict": self.outcome,
            "exit_code": self.exit_code,
            "model": self.model,
            "against": self.against,
            "findings": [f.json() for f in self.findings],
            "notes": list(self.notes),
        }
