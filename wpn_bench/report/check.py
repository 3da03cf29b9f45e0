"""Print `wpn-bench check`: for the terminal, a pull request, a CI server (JUnit XML) and GitHub annotations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from wpn_bench.report.templates import markdown_text

if TYPE_CHECKING:
    from wpn_bench.analysis.check import Checked, Finding
    from wpn_bench.runs.finished import Run


_COLOURS = {"pass": "green", "regression": "bold red", "inconclusive": "yellow", "watched": "dim"}
# Characters that XML 1.0 does not allow.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def show(checked: Checked) -> None:
    """Print the findings as a table, failures first, then the notes and the verdict."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=160, no_color=True)  # wide, because broken lines in a log are hard to search
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "What", "Change or value", "Bound"):
        table.add_column(column)
    for finding in _worst_first(checked):
        table.add_row(
            Text(_said(finding), style=_COLOURS[_said(finding)]),
            Text(finding.target.title),
            Text(finding.figure),
            Text(finding.limit),
        )
    console.print(table)
    for note in checked.notes:
        console.print(Text(f"note: {note}", style="dim"))
    console.print(Text(checked.sentence, style=_COLOURS[checked.outcome]), soft_wrap=True)


def markdown(checked: Checked) -> str:
    """Return the check as Markdown, for a pull request or $GITHUB_STEP_SUMMARY."""
    marks = {"pass": "✅", "regression": "❌", "inconclusive": "⚠️", "watched": "👀"}
    lines = [f"### wpn-bench check: {marks[checked.outcome]} {markdown_text(checked.sentence)}", ""]
    lines += ["| | What | Change or value | Bound |", "|---|---|---|---|"]
    for finding in _worst_first(checked):
        cells = (finding.target.title, finding.figure, finding.limit)
        lines.append(f"| {marks[_said(finding)]} | {' | '.join(map(markdown_text, cells))} |")
    lines += ["", *(f"- {markdown_text(note)}" for note in checked.notes)]
    return "\n".join(lines).rstrip() + "\n"


def junit(checked: Checked) -> str:
    """Return the check as JUnit XML with one test case per finding.

    An inconclusive finding is a failure of the type `inconclusive`. It is skipped if the check accepts inconclusive
    findings.
    """
    from xml.etree import ElementTree

    suite = ElementTree.Element("testsuite", name="wpn-bench check", tests=str(len(checked.findings)))
    failures = skipped = 0
    for finding in checked.findings:
        group = {"change": "change", "min": "bound", "max": "bound"}[finding.kind]
        name = _for_xml(finding.target.title)
        case = ElementTree.SubElement(suite, "testcase", classname=f"wpn-bench.{group}", name=name, time="0")
        said = _for_xml(finding.reason)
        if finding.outcome == "inconclusive" and checked.tolerant:
            ElementTree.SubElement(case, "skipped", message=said)
            skipped += 1
        elif finding.outcome != "pass":
            ElementTree.SubElement(case, "failure", message=said, type=finding.outcome).text = said
            failures += 1
        else:
            ElementTree.SubElement(case, "system-out").text = said
    suite.set("failures", str(failures))
    suite.set("skipped", str(skipped))
    suite.set("errors", "0")
    properties = ElementTree.Element("properties")
    for key, value in (("model", checked.model), ("against", checked.against), ("verdict", checked.outcome)):
        ElementTree.SubElement(properties, "property", name=key, value=_for_xml(value))
    suite.insert(0, properties)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def junit_of_run(run: Run) -> str:
    """Return a check without a baseline as JUnit XML: the primary model against the base of the same run."""
    from wpn_bench.analysis.check import check_run

    return junit(check_run(run))


def workflow_commands(checked: Checked) -> list[str]:
    """Return workflow commands of GitHub Actions.

    They are an error for each regression and a warning for each inconclusive finding.
    """
    lines = []
    for finding in _worst_first(checked):
        if finding.outcome != "pass":
            level = "error" if finding.outcome == "regression" else "warning"
            title = _command(f"wpn-bench: {finding.target.title}", inside=True)
            lines.append(f"::{level} title={title}::{_command(finding.reason)}")
    if not lines:
        lines.append(f"::notice title=wpn-bench::{_command(checked.sentence)}")
    return lines


def _said(finding: Finding) -> str:
    """Return the outcome of a finding, or `watched` if it passed and was not required."""
    return finding.outcome if finding.required or finding.outcome != "pass" else "watched"


def _worst_first(checked: Checked) -> list[Finding]:
    order = ("regression", "inconclusive", "pass")
    return sorted(checked.findings, key=lambda f: (order.index(f.outcome), not f.required))


def _for_xml(text: str) -> str:
    return _NO_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _command(text: str, *, inside: bool = False) -> str:
    """Escape a text for a workflow command (actions/toolkit, `command.ts`).

    `inside` also escapes it for the properties.
    """
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if inside else text
