"""The formats of a report: what each is called, the file it is written to, and what makes its text."""

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
    """`file` is its name in a run's folder. `one` ("module:function", imported when it is asked for) makes its text of a
    `render.ReportedRun`, `several` that of a `comparison.Comparison`; None where it cannot show several runs."""

    file: str
    one: str
    several: str | None = None

    @property
    def together(self) -> str:
        """The name of its file about several runs."""
        return f"comparison{Path(self.file).suffix}"


FORMATS: dict[str, Format] = {
    "html": Format("report.html", "wpn_bench.report.render:page", "wpn_bench.report.comparison:page"),
    "md": Format("report.md", "wpn_bench.report.render:markdown", "wpn_bench.report.comparison:markdown"),
    "json": Format("summary.json", "wpn_bench.report.summary:summary", "wpn_bench.report.comparison:summary"),
    "csv": Format("metrics.csv", "wpn_bench.report.summary:metrics", "wpn_bench.report.comparison:metrics"),
    "junit": Format("junit.xml", "wpn_bench.report.check:junit_of_run"),
}


def chosen(names: Sequence[str]) -> dict[str, Format]:
    """The named formats, each once; UserError for an unknown one, and for none."""
    if not names:
        raise UserError("--format names no format", f"choose from {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS:
            near = close_matches(name, FORMATS)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(FORMATS)}"
            raise UserError(f"unknown report format {name!r}", hint)
    return {name: FORMATS[name] for name in names}


def maker(path: str) -> Callable[[Any], str]:
    """The function that `Format.one` or `Format.several` names."""
    module, _, name = path.partition(":")
    found: Callable[[Any], str] = getattr(import_module(module), name)
    return found
