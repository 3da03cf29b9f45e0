"""The oracle in the report: its section, and that it is no method."""

from __future__ import annotations

from typing import Any

from wpn_bench.report.oracle import section
from wpn_bench.report.verdict import sentences
from wpn_bench.runs.view import View


def row(model: str, suite: str, name: str, metric: str, value: float) -> dict[str, Any]:
    return {"model": model, "seed": None, "suite": suite, "set": name, "metric": metric, "value": value, "n": 100} | {
        "ci_low": value - 0.05,
        "ci_high": value + 0.05,
    }


def with_oracle(results: dict[str, Any]) -> View:
    results["models"]["oracle"] = {"title": "oracle", "method": None, "status": "ok"}
    results["metrics"] += [
        row("oracle", "harmless", "lab_in_domain", "coherent_harmless_rate", 1.0),
        row("wpn", "oracle_harmless", "lab_in_domain", "coherent_harmless_rate_minus_oracle", -0.04),
        row("wpn", "oracle_harmless", "lab_in_domain", "same_verdict_as_oracle_rate", 0.95),
        row("wpn", "oracle_harmless", "lab_in_domain", "same_text_as_oracle_rate", 0.12),
        row("wpn", "oracle_ood", "one", "coherent_harmless_rate_minus_oracle", -0.2),
        row("wpn", "oracle_ood", "two", "coherent_harmless_rate_minus_oracle", -0.1),
    ]
    return View(results)


def test_the_section(results: dict[str, Any]) -> None:
    found = section(with_oracle(results))
    assert found is not None
    assert found.table is not None
    assert found.table.columns == ["in domain", "out of distribution"]
    (line,) = found.table.lines
    first, second = line.cells
    assert first is not None
    assert second is not None
    assert (line.key, first.value, first.ci) == ("wpn", "-4.0", "[-9.0, +1.0]")
    assert first.note == "same verdict 95.0 %, same text 12.0 %"
    assert (second.value, second.note) == ("-15.0", "")


def test_the_oracle_is_a_reference_and_no_method(results: dict[str, Any]) -> None:
    view = with_oracle(results)
    assert "oracle" in view.measured()
    assert "oracle" not in view.methods()
    assert not any("oracle" in str(sentence) for sentence in sentences(view))
    alone = View({**results, "metrics": [one for one in results["metrics"] if one["model"] in ("base", "oracle")]})
    assert alone.primary() is None


def test_a_run_without_an_oracle_has_no_section(results: dict[str, Any]) -> None:
    assert section(View(results)) is None
