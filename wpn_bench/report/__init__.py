"""Reports: read the stored results of a run and write `report.html`, `report.md` and other formats. No model is loaded.

`render` writes the reports of one run, and `compare_runs` those of several runs. `verdict` returns the sentences that a
run prints at its end.
"""

from __future__ import annotations

from wpn_bench.report.comparison import compare_runs
from wpn_bench.report.render import render
from wpn_bench.report.templates import templates_dir
from wpn_bench.report.verdict import verdict

__all__ = ["compare_runs", "render", "templates_dir", "verdict"]
