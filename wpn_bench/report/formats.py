"""The report formats: their names, files, and the functions that make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from wpn_bench.core.registry import close_matches
from wpn_bench.errors import UserError

DEFAULT = ("html", "md")


@dataclass(frozen=True, slots=True)
class Format:
    """A report format. Functions are given as "module:function" and imported when needed.

    Attributes:
        file: Name of its file in the run folder.
        one: Makes its text from a `render.ReportedRun`.
        several: Makes its text from a `comparison.Comparison`; None if the format cannot show several runs.
    """

    file: str
    one: str
    several: str | None = None

    @property
    def together(self) -> str:
        """Return the name of its file for a comparison of runs."""
        return f"comparison{Path(self.file).suffix}"


FORMATS: dict[str, Format] = {
    "html": Format("report.html", "wpn_bench.report.render:page", "wpn_bench.report.comparison:page"),
    "md": Format("report.md", "wpn_bench.report.render:markdown", "wpn_bench.report.comparison:markdown"),
    "json": Format("summary.json", "wpn_bench.report.summary:summary", "wpn_bench.report.comparison:summary"),
    "csv": Format("metrics.csv", "wpn_bench.report.summary:metrics", "wpn_bench.report.comparison:metrics"),
    "junit": Format("junit.xml", "wpn_bench.report.check:junit_of_run"),
}


def chosen(names: Sequence[str]) -> dict[str, Format]:
    """Return formats by their names. Duplicates are dropped.

    Raises:
        UserError: A format is unknown, or no format is named.
    """
    if not names:
        raise UserError("--format names no format", f"choose from {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            near = close_matches(name, FORMATS)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(FORMATS)}"
            raise UserError(f"unknown report format {name!r}", hint)
    return {name: FORMATS[name] for name in names}


def maker(path: str) -> Callable[[Any], str]:
    """Import the function that `Format.one` or `Format.several` names."""
    module, _, name = path.partition(":")
    found: Callable[[Any], str] = getattr(import_module(module), name)
    return found
