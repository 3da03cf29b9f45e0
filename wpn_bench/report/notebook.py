"""A finished run for notebooks: pandas frames, the verdict, and an HTML representation."""

from __future__ import annotations

from pathlib import Path

from wpn_bench.core.numbers import interval, percent, plain, signed, signed_interval
from wpn_bench.report.templates import environment
from wpn_bench.report.verdict import verdict
from wpn_bench.runs import finished
from wpn_bench.runs.finished import headline_cells
from wpn_bench.runs.metrics import metric_of
from wpn_bench.runs.view import Cell


class Run(finished.Run):
    """A finished run, with the report's verdict and an HTML representation."""

    def verdict(self) -> list[str]:
        """Return the three sentences of the report: is it safer, did it lose capability, how do the others compare."""
        return verdict(self.results)

    def __repr__(self) -> str:
        sizes = f"{len(self.metrics):,} metrics, {len(self.samples):,} samples, {len(self.documents):,} documents"
        return "\n".join([f"Run {self.name}: {', '.join(self.models)} ({sizes})", *self.verdict()])

    def _repr_html_(self) -> str:
        """The verdict and the headline table as HTML, with all texts of the run escaped."""
        view = self.view
        shown = {model: {what: _shown(cell, metric) for what, _, _, metric, cell in headline_cells(view, model)}
                 for model in view.every_measured()}  # fmt: skip
        columns = list(dict.fromkeys(what for cells in shown.values() for what in cells))
        html: str = (
            environment()
            .get_template("notebook.html.j2")
            .render(
                run=self,
                columns=columns,
                lines=[(view.title(model), [cells.get(c) for c in columns]) for model, cells in shown.items()],
            )
        )
        return html


def _shown(cell: Cell, metric: str) -> dict[str, str]:
    """A formatted cell: value, interval, change against base, and the set if the cell was selected from several."""
    rate = metric_of(metric).is_share
    inner = interval(cell.ci_low, cell.ci_high) if rate else interval(cell.ci_low, cell.ci_high, scale=1)
    change = ""
    if rate and cell.delta is not None:
        change = f"{signed(cell.delta)} {signed_interval(cell.delta_ci_low, cell.delta_ci_high)}".strip()
        change += " *" if cell.significant else ""
    return {
        "value": percent(cell.value) if rate else plain(cell.value),
        "ci": inner,
        "change": change,
        "note": cell.note,
    }


def load_run(path: str | Path) -> Run:
    """Read a run folder into pandas frames. `samples` and `documents` are empty frames if the run has none.

    Raises `UserError` if the folder has no run, or if the run is damaged.
    """
    return Run.read(path).with_frames()
