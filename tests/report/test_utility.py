"""The section on benign answers."""

from __future__ import annotations

from typing import Any

from wpn_bench.report.utility import section
from wpn_bench.runs.view import View


def row(model: str, name: str, metric: str, value: float, **more: float) -> dict[str, Any]:
    ends = {"ci_low": value - 0.1, "ci_high": value + 0.1}
    return (
        {"model": model, "seed": None, "suite": "benign", "set": name, "metric": metric, "value": value, "n": 50}
        | ends
        | more
    )


def test_the_section(results: dict[str, Any]) -> None:
    results["metrics"] += [
        row("base", "one", "answer_words", 20.0),
        row("base", "two", "answer_words", 30.0),
        row("wpn", "one", "answer_words", 12.0, delta=-8.0, delta_ci_low=-9.0, delta_ci_high=-7.0),
        row("wpn", "two", "answer_words", 28.0, delta=-2.0, delta_ci_low=-3.0, delta_ci_high=-1.0),
        row("wpn", "one", "overlap_with_base_rate", 0.5),
        row("wpn", "two", "overlap_with_base_rate", 0.7),
    ]
    found = section(View(results))
    assert found is not None
    assert found.table is not None
    assert found.table.columns == ["words per answer", "overlap with the answer of base"]
    base, wpn = found.table.lines
    assert (base.key, wpn.key) == ("base", "wpn")
    assert base.cells[1] is None
    words, overlap = wpn.cells
    assert words is not None
    assert overlap is not None
    assert (words.value, words.delta, words.mark, words.tone) == ("20.0", "-5.000", True, "")
    assert overlap.value == "60.0 %"


def test_a_run_without_benign_prompts_has_no_section(results: dict[str, Any]) -> None:
    assert section(View(results)) is None
