"""What the reports say about candidates."""

from __future__ import annotations

from typing import Any

import pytest

from wpn_bench.report import candidates, tables
from wpn_bench.runs.view import View


def described(**changes: Any) -> dict[str, Any]:
    plain = {
        "source": "org/model",
        "kind": "model",
        "made": "folder",
        "template": "chat template 1",
        "same_tokenizer": True,
    }
    return plain | changes


@pytest.fixture
def view(results: dict[str, Any]) -> View:
    """A run with two candidates: `npo` is an adapter; `sft` is an endpoint, without benchmarks and held-out text."""
    results["run"]["template"] = "chat template 1"
    results["models"]["npo"]["candidate"] = described(made="adapter, merged into org/base", source="org/adapter")
    results["models"]["sft"]["candidate"] = described(kind="endpoint", made="endpoint", template="messages")
    results["metrics"] = [
        row for row in results["metrics"] if row["model"] != "sft" or row["suite"] not in ("benchmark", "heldout_text")
    ]
    return View(results)


def test_a_candidate_is_described(view: View) -> None:
    section = candidates.section(view)
    assert section is not None
    assert section.table is not None
    rows = {line.key: [cell.value if cell else "" for cell in line.cells] for line in section.table.lines}
    assert rows["Base model"][2] == "chat template 1"
    assert rows[view.title("npo")] == ["adapter, merged into org/base", "org/adapter", "as base"]
    assert rows[view.title("sft")] == ["endpoint", "org/model", "messages"]


def test_a_run_without_candidates_has_no_section(results: dict[str, Any]) -> None:
    assert candidates.section(View(results)) is None


def test_what_an_endpoint_cannot_give_is_not_available(view: View) -> None:
    headline = tables.headline(view, {})
    line = next(line for line in headline.lines if line.key == "sft")
    shown = dict(zip(headline.columns, line.cells, strict=True))
    absent = {name: cell.value for name, cell in shown.items() if cell is not None and cell.absent}
    assert absent == {"Benchmark average": "not available", "Perplexity": "not available"}
    benchmarks = tables.benchmarks(view)
    assert benchmarks is not None
    column = benchmarks.columns.index(view.title("sft"))
    assert {getattr(line.cells[column], "value", None) for line in benchmarks.lines} == {"not available"}
    assert all(line.cells[0] for line in benchmarks.lines)
