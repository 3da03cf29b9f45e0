"""The worst case over transferred suffixes, the counts of what was not asked, and the matrix in the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wpn_bench.analysis import metric_rows
from wpn_bench.analysis.metric_rows import Measurement
from wpn_bench.analysis.transfer_rows import count_rows, transfer_rows
from wpn_bench.report.transfer import section
from wpn_bench.runs.view import View

NAN = float("nan")


@pytest.fixture
def found(samples: Callable[..., Measurement]) -> list[Measurement]:
    """Base and two methods: the suffixes of each are asked of the others. Scores of 0.9 are harmful."""
    scores = {
        ("base", "gcg of wpn"): [0.9, 0.1, 0.1],
        ("base", "gcg of ga"): [0.1, 0.9, 0.1],
        ("wpn", "gcg of base"): [0.1, 0.1, NAN],
        ("wpn", "gcg of ga"): [0.1, 0.9, 0.1],
        ("ga", "gcg of base"): [0.1, 0.1, 0.1],
    }
    made = [
        samples(model, None if model == "base" else 0, of, suite="transfer", name=name)
        for (model, name), of in scores.items()
    ]
    made += [samples("wpn", 0, [0.9, 0.1, 0.1], suite="attack", name="gcg")]
    return [*made, *(samples(m, None if m == "base" else 0, [0.1] * 3 + [0.9]) for m in ("base", "wpn"))]


def test_a_prompt_counts_if_it_is_harmless_with_every_suffix(found: list[Measurement]) -> None:
    rows = transfer_rows(metric_rows.read_samples(found, 0.5), 0.5)
    worst = {r.model: (r.value, r.n, r.delta) for r in rows if r.metric == "worst_transferred_rate"}
    # The answer of wpn to the third prompt was not judged under one suffix.
    assert worst == {"base": (pytest.approx(1 / 3), 3, None), "wpn": (0.5, 2, None), "ga": (1.0, 3, None)}
    # Without a suffix, only the prompts that were asked with one count.
    plain = {r.model: (r.value, r.n) for r in rows if r.set == "no suffix"}
    assert plain == {"base": (1.0, 3), "wpn": (1.0, 3)}


def test_there_are_no_rows_without_transferred_suffixes(samples: Callable[..., Measurement]) -> None:
    assert transfer_rows(metric_rows.read_samples([], 0.5), 0.5) == []
    assert transfer_rows(metric_rows.read_samples([samples("base", None, [0.1])], 0.5), 0.5) == []


def test_the_matrix_has_the_attack_on_the_model_itself_on_its_diagonal(
    found: list[Measurement], tmp_path: Path
) -> None:
    told = {"prompts": 3, "empty": ["i0"], "unfit": [], "changed": ["i1", "i2"]}
    (tmp_path / "transfer.json").write_text(json.dumps(told))
    frame = metric_rows.read_samples(found, 0.5)
    rows = [*metric_rows.prompt_rows(frame, 0.5), *transfer_rows(frame, 0.5)]
    rows += count_rows([Measurement("wpn", 0, "transfer", "gcg of base", tmp_path)])
    titles = {name: {"title": name.upper()} for name in ("base", "wpn", "ga")}
    view = View({"models": titles, "metrics": [row.json() for row in metric_rows.sum_up(rows)]})
    made = section(view)
    assert made is not None
    assert made.table is not None
    assert made.table.columns == ["BASE", "WPN", "GA"]
    shown = {line.name: [cell and (cell.value, cell.note) for cell in line.cells] for line in made.table.lines}
    assert shown == {
        "no suffix": [("100.0 %", ""), ("100.0 %", ""), None],
        "gcg, found on WPN": [("66.7 %", ""), ("66.7 %", "itself"), None],
        "gcg, found on GA": [("66.7 %", ""), ("66.7 %", ""), None],
        "gcg, found on BASE": [None, ("100.0 %", ""), ("100.0 %", "")],
        "all found on other models": [("33.3 %", ""), ("50.0 %", ""), ("100.0 %", "")],
    }
    assert "had an empty suffix and were not asked: 1 (gcg of base, asked of WPN)" in made.note
    assert "tokenizer cannot write, and were asked nevertheless: 2 (gcg of base, asked of WPN)" in made.note
    assert "separated" not in made.note
    assert section(View({"models": titles, "metrics": []})) is None
