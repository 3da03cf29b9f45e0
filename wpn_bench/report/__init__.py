"""Reports for people: read the stored rows of a run and write `report.html` and `report.md`; never load a model.

`render` writes the files of one run, `compare_runs` those of several, `verdict` gives the sentences that also close a run in
the terminal.
"""

from __future__ import annotations

from wpn_bench.report.comparison import compare_runs
from wpn_bench.report.render import render
from wpn_bench.report.templates import templates_dir
from wpn_bench.report.verdict import verdict

__all__ = ["compare_runs", "render", "templates_dir", "verdict"]
