"""Reports for programs: `summary.json` and `metrics.csv`.

`summary.json` contains the verdict and the headline metrics. `metrics.csv` contains the metric rows of results.json as
a flat table. docs/report.md describes both.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from wpn_bench.analysis.verdict import damage, non_inferiority_of
from wpn_bench.core.numbers import is_finite
from wpn_bench.report.render import failures
from wpn_bench.report.verdict import sentences
from wpn_bench.runs.files import BASE, Row
from wpn_bench.runs.finished import Run
from wpn_bench.runs.headline import HEADLINES
from wpn_bench.runs.view import Cell, View

SCHEMA_VERSION = 1
_RUN = (
    "name", "created", "model", "revision", "preset", "seeds", "limit", "partial", "lab", "judge", "threshold",
    "margin_points",
)  # fmt: skip
COLUMNS = tuple(field.name for field in fields(Row))


def summary(run: Run) -> str:
    """The text of summary.json: the verdict, headline metrics, and what failed or was skipped."""
    view = run.view
    found = {
        "schema_version": SCHEMA_VERSION,
        "run": about(view),
        "primary": view.primary(),
        "verdict": [
            {"question": one.question, "answer": one.answer, "text": one.text, "parts": list(one.parts)}
            for one in sentences(view)
        ],
        "models": models(view),
        "failed": failures(view),
        "skipped": view.run.get("skipped") or [],
    }
    return text(found)


def about(view: View) -> dict[str, Any]:
    """The facts about a run in summary.json."""
    return {name: view.run.get(name) for name in _RUN}


def models(view: View) -> list[dict[str, Any]]:
    """The measured models, then the failed ones: method, status and headline metrics of each."""
    measured = view.every_measured()
    found = []
    for name in (*measured, *(name for name in view.models if view.failed(name) and name not in measured)):
        described = view.models.get(name, {})
        cells = {one.key: cell for one in HEADLINES if (cell := one.of(view, name)) is not None}
        found.append(
            {
                "model": name,
                "title": view.title(name),
                "method": described.get("method"),
                "status": described.get("status"),
                "reason": described.get("reason"),
                "broken": damage(view, name),
                "non_inferiority": non_inferiority_of(view, name) if name != BASE else None,
                "headline": {key: figure(cell) for key, cell in cells.items()},
            }
        )
    return found


def figure(cell: Cell) -> dict[str, Any]:
    """Return the numbers of a cell under their names in results.json, and two more keys.

    `significant` is the mark in the tables. `note` is the set if the cell was selected from several sets.
    """
    numbers = {name: getattr(cell, name) for name in COLUMNS if hasattr(cell, name)}
    return {**numbers, "significant": cell.delta is not None and cell.significant, "note": cell.note}


def metrics(run: Run) -> str:
    """The text of metrics.csv: the metric rows as CSV."""
    return table(run.results.get("metrics") or [])


def table(rows: Iterable[Mapping[str, Any]], before: tuple[str, ...] = ()) -> str:
    """Return rows as CSV with the columns of results.json. Unknown and infinite values are empty.

    Args:
        rows: The rows.
        before: Names of additional columns, which come first.

    Returns:
        The text of the CSV file.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = (*before, *COLUMNS)
    writer.writerow(columns)
    for row in rows:
        values = (row.get(column) for column in columns)
        writer.writerow("" if v is None or (isinstance(v, float) and not is_finite(v)) else v for v in values)
    return out.getvalue()


def text(found: dict[str, Any]) -> str:
    """Return data as indented JSON. NaN is an error, because JSON cannot hold it."""
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
