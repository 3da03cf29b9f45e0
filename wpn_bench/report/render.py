"""Make `report.html` and `report.md` from the files of a finished run. No model is loaded.

The page is one file that works offline. It contains style, script, Plotly, charts and samples. Its
Content-Security-Policy allows only two scripts, which are identified by their digests. So even if escaping failed, a
script in a model's answer could not run, and the page could send no request.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from wpn_bench.report import (
    ablation,
    candidates,
    charts,
    formats,
    judges,
    label_summary,
    oracle,
    sections,
    step_charts,
    tables,
    training_tables,
    utility,
)
from wpn_bench.report.drawing import colours
from wpn_bench.report.samples import pack
from wpn_bench.report.sections import Section
from wpn_bench.report.templates import environment, style, templates_dir, trusted
from wpn_bench.report.verdict import sentences
from wpn_bench.report.write import write_reports
from wpn_bench.runs.finished import Run
from wpn_bench.runs.metrics import ANSWERED_RATE, BENCHMARK, BENIGN, HELDOUT_TEXT, PROMPT_SUITES, REFUSAL_RATE
from wpn_bench.runs.view import View

MARKDOWN_LIMIT = 65_000  # maximum number of characters; GitHub allows 65,535 in a comment
FOLDED = 1_000  # sections of report.md with more characters are collapsed


@dataclass(frozen=True, repr=False, eq=False)
class ReportedRun(Run):
    """A finished run as the report formats use it.

    Attributes:
        has_html: Whether report.html is in the folder of the report, so that report.md can link to it.
    """

    has_html: bool = False

    @cached_property
    def context(self) -> dict[str, Any]:
        """The values that report.html and report.md share."""
        return _context(self)


def render(run_dir: Path, names: tuple[str, ...] = formats.DEFAULT, out: Path | None = None) -> list[Path]:
    """Write the reports of a run.

    Args:
        run_dir: The run folder. It needs `results.json`. `manifest.json` and `samples.parquet` are used if they exist.
        names: Names of the formats (see `formats.FORMATS`).
        out: Folder for the reports; None uses `run_dir`.

    Returns:
        The paths of the reports, in the order of `names`.

    Raises:
        UserError: The folder has no results or results of another schema version, a format is unknown, or the reports
            cannot be written.
    """
    wanted, folder = formats.chosen(names), out or run_dir
    beside = "html" in wanted or (folder / formats.FORMATS["html"].file).exists()
    run = ReportedRun.read(run_dir, has_html=beside)
    return write_reports({one.file: one.one for one in wanted.values()}, run, folder)


def _context(run: ReportedRun) -> dict[str, Any]:
    view = run.view
    return {
        "run": view.run,
        "view": view,
        "title": str(view.run.get("model") or view.run.get("name") or "a run"),
        "verdict": sentences(view),
        "headline": tables.headline(view, colours(view)),
        "failed": failures(view),
        "skipped": view.run.get("skipped") or [],
        "primary": view.primary(),
        "margin": f"{100 * view.margin:g}",
        "ablations": ablation.ablations(view),
        "tunings": training_tables.tunings(view),
        "tuning_text": training_tables.tuning_text(view),
        "relearning_summary": training_tables.relearning_summary(view),
        "leakage_text": tables.leakage_text(view),
        "success_text": tables.success_text(view),
        "manifest": run.manifest,
        "judging": judges.judges(run),
        "labelled": label_summary.labelled(run),
        "candidates": candidates.section(view),
        "sections": [*filter(None, [oracle.section(view), utility.section(view)]), *sections.contributed(run)],
    }


def failures(view: View) -> list[dict[str, Any]]:
    """Return the failed jobs, and the failed models whose reason is not that of a failed job."""
    failed = [dict(item) for item in view.run.get("failed") or []]
    reasons = {str(item.get("reason")) for item in failed}
    for name in view.models:
        reason = str(view.models[name].get("reason") or "no reason recorded")
        if view.failed(name) and reason not in reasons:
            failed.append({"job": view.title(name), "reason": reason})
    return failed


def _costs(view: View) -> Section | None:
    table, peak = tables.costs(view), tables.peak_memory(view)
    note = (
        "Wall time of each stage when it was first computed, also where this run took it from the store. Tokens are those"
        " of the answers."
    )
    if peak:
        note += f" The run held at most {peak} of memory."
    if table is None:
        return None
    return Section("Costs", table, note, caption="Wall time and tokens by stage", id="costs")


def page(run: ReportedRun) -> str:
    """The text of report.html."""
    view, context = run.view, run.context
    trade_off = charts.trade_off(view)
    figures = {
        "trade-off": trade_off or charts.harmlessness(view),
        "benchmarks": charts.benchmarks(view),
        "generalisation": charts.generalisation(view),
        "thresholds": charts.thresholds(view),
        "calibration": charts.calibration(view),
    }
    losses = step_charts.losses(view)
    figures |= {f"loss-{name}": figure for name, figure in losses.items()}
    curves = step_charts.curves(view)
    figures |= {f"curve-{name}": figure for name, figure in curves.items()}
    relearnt = step_charts.relearning(view)
    figures |= {f"relearning-{kind}": figure for kind, figure in relearnt.items()}
    figures |= {section.id: section.chart for section in context["sections"] if section.chart}
    folder = templates_dir()
    script = (folder / "report.js").read_text(encoding="utf-8")
    plotly, plotly_digest = _plotly()
    more = {
        "style": style(),
        "script": trusted(script),
        "policy": f"'sha256-{_digest(script)}' 'sha256-{plotly_digest}'",
        "plotly": plotly,
        "figures": {name: figure for name, figure in figures.items() if figure},
        "losses": list(losses),
        "curves": {name: training_tables.curve(view, name) for name in curves},
        "searches": training_tables.searches(view),
        "relearnt": {kind: (step_charts.RELEARNT[kind], training_tables.relearning(view, kind)) for kind in relearnt},
        "has_trade_off": trade_off is not None,
        "benchmarks": tables.benchmarks(view),
        "tasks": [name for name in view.sets(BENCHMARK) if name != HELDOUT_TEXT and name not in view.own_benchmarks()],
        "own_units": bool(view.own_benchmarks()),
        "documents": tables.documents(view),
        "suites": {suite: tables.rates(view, suite) for suite in PROMPT_SUITES if view.sets(suite)},
        "benign_answered": any(view.rate_of(BENIGN, name) == ANSWERED_RATE for name in view.sets(BENIGN)),
        "attack_success": tables.attack_success(view),
        "worst_case_text": tables.worst_case_text(view),
        "refusals": tables.rates(view, BENIGN, REFUSAL_RATE),
        "refusals_by": tables.refusals_by(view.run.get("refusals")),
        "thresholds": tables.thresholds(view),
        "leakage": tables.leakage(view),
        "seeds": tables.seeds(view),
        "costs": _costs(view),
        "samples": pack(run),
        "settings": _settings(run.manifest),
        "configs": {name: model["config"] for name, model in view.models.items() if model.get("config")},
    }
    return environment().get_template("report.html.j2").render(context | more)


def markdown(run: ReportedRun) -> str:
    """The text of report.md: at most `MARKDOWN_LIMIT` characters."""
    about = run.context | {"has_html": run.has_html, "items": tables.items(run.context["headline"])}
    return fitted(environment().get_template("report.md.j2").render(about))


def fitted(text: str, limit: int = MARKDOWN_LIMIT) -> str:
    """Shorten Markdown whose sections are separated by form feeds.

    The text before the first form feed is kept. If it is too long, it is cut at the end of a line. Each section starts
    with its heading. Long sections are collapsed. Sections that do not fit are left out, and their headings are listed
    at the end.

    Args:
        text: The Markdown.
        limit: Maximum number of characters.

    Returns:
        The shortened Markdown.
    """
    tidy = re.sub(r" +$", "", text, flags=re.MULTILINE)
    head, *sections = (re.sub(r"\n{3,}", "\n\n", part).strip() for part in tidy.split("\f"))
    left = limit - 1_000  # reserved for the list of sections that are left out
    if len(head) > left:
        lines = head[:left].splitlines()[:-1]
        head = "\n".join(lines) + "\n\n*Cut here: too long for a comment.*"
        if head.count("<details>") > head.count("</details>"):
            head += "\n\n</details>"
    kept, out = [head], []
    left -= len(head)
    for section in filter(None, sections):
        heading, _, body = section.partition("\n")
        title = re.sub(r"\\(.)", r"\1", heading.lstrip("# "))  # Markdown escapes are not interpreted in an HTML tag
        if len(section) > FOLDED:
            section = f"<details><summary>{title}</summary>\n\n{body.strip()}\n\n</details>"
        if len(section) + 2 <= left:
            kept.append(section)
            left -= len(section) + 2
        else:
            out.append(title)
    if out:
        kept.append(f"*Left out, too long for a comment: {', '.join(out)}.*"[:900])
    return "\n\n".join(kept) + "\n"


def _settings(manifest: dict[str, Any]) -> str:
    """Return the configuration as a file for `--config`, or an empty text if the manifest has none."""
    import yaml

    config = manifest.get("config")
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)) if config else ""


@cache
def _plotly() -> tuple[str, str]:
    """Return Plotly's script as base64 of gzip (2 MB instead of 5 MB), and its digest for the security policy."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode("ascii"), _digest(script)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
