"""`results.json` and what lies beside it -> `report.html` and `report.md`. Reads stored rows, never loads a model.

The page is one file that works from disk without a network: style, script, Plotly, figures and samples are inside it.
A Content-Security-Policy names the two scripts by their digests, so neither a request nor a script that a model wrote
could run even if some text escaped its place.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError
from wpn_bench.paths import reports_dir
from wpn_bench.report import ablation, charts, formats, judges, tables
from wpn_bench.report.numbers import seconds
from wpn_bench.report.samples import pack
from wpn_bench.report.verdict import sentences
from wpn_bench.report.view import View
from wpn_bench.results import SAMPLES, read_manifest, read_results
from wpn_bench.store import write_text

MARKDOWN_LIMIT = 65_000  # characters: GitHub takes 65,535 in a comment
FOLDED = 1_000  # a section of the short report that is longer opens on request
# Characters that HTML forbids, that steer a terminal, or that end a file for some readers.
_UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Finished:
    """A finished run, as the makers of its reports read it. `has_html`: report.html lies beside what is written."""

    folder: Path
    results: dict[str, Any]
    has_html: bool = False

    @cached_property
    def view(self) -> View:
        return View(self.results)

    @cached_property
    def context(self) -> dict[str, Any]:
        return _context(self.view, self.folder)


def render(run_dir: Path, names: tuple[str, ...] = formats.DEFAULT, out: Path | None = None) -> list[Path]:
    """Write the reports of a run into its folder (or into `out`) and return their paths, in the order of `names`.

    Needs `results.json`; `manifest.json` and `samples.parquet` are used where they are there.
    Raises UserError for a folder without results, results of another schema, an unknown format, and a folder that cannot be
    written.
    """
    wanted, folder = formats.chosen(names), out or run_dir
    beside = "html" in wanted or (folder / formats.FORMATS["html"].file).exists()
    run = Finished(run_dir, read_results(run_dir), beside)
    return write_reports({one.file: one.one for one in wanted.values()}, run, folder)


def write_reports(makers: Mapping[str, str], about: Any, folder: Path) -> list[Path]:
    """Write each file (name -> "module:function" of its maker) and return the paths. All texts are made before the first
    is written."""
    texts = {name: formats.maker(path)(about) for name, path in makers.items()}
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, _readable(text))
            written.append(folder / name)
    except OSError as e:
        raise UserError(f"the report cannot be written to {folder} ({e.strerror})", "give another with --out") from e
    return written


def _readable(text: str) -> str:
    """Text that every reader of UTF-8 takes: a lone surrogate (half of an emoji) becomes a question mark, a control
    character the mark of what cannot be shown."""
    return _UNREADABLE.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))


def templates_dir() -> Path:
    """The report templates: in the wheel beside the package, in a checkout under `reports/`."""
    folder = reports_dir() / "templates"
    if folder.is_dir():
        return folder
    raise UserError("the report templates were not installed with wpn-bench", "install wpn-bench again")


def _context(view: View, run_dir: Path) -> dict[str, Any]:
    """What both formats print."""
    colours = charts.colours(view)
    return {
        "run": view.run,
        "view": view,
        "title": str(view.run.get("model") or view.run.get("name") or "a run"),
        "verdict": sentences(view),
        "headline": tables.headline(view, colours),
        "failed": failures(view),
        "skipped": view.run.get("skipped") or [],
        "primary": view.primary(),
        "margin": f"{100 * view.margin:g}",
        "ablations": ablation.ablations(view),
        "tunings": tables.tunings(view),
        "tuning_text": tables.tuning_text(view),
        "relearning_summary": tables.relearning_summary(view),
        "leakage_text": tables.leakage_text(view),
        "success_text": tables.success_text(view),
        "manifest": read_manifest(run_dir),
        "judging": judges.judges(view, run_dir / SAMPLES),
    }


def failures(view: View) -> list[dict[str, Any]]:
    """Jobs that failed, and models that did where no job says why."""
    failed = [dict(item) for item in view.run.get("failed") or []]
    reasons = {str(item.get("reason")) for item in failed}
    for name in view.models:
        reason = str(view.models[name].get("reason") or "no reason recorded")
        if view.failed(name) and reason not in reasons:
            failed.append({"job": view.title(name), "reason": reason})
    return failed


def page(run: Finished) -> str:
    """report.html."""
    view, run_dir, context = run.view, run.folder, run.context
    trade_off = charts.trade_off(view)
    figures = {
        "trade-off": trade_off or charts.harmlessness(view),
        "benchmarks": charts.benchmarks(view),
        "generalisation": charts.generalisation(view),
        "thresholds": charts.thresholds(view),
        "calibration": charts.calibration(view),
    }
    losses = charts.losses(view)
    figures |= {f"loss-{name}": figure for name, figure in losses.items()}
    curves = charts.curves(view)
    figures |= {f"curve-{name}": figure for name, figure in curves.items()}
    relearnt = charts.relearning(view)
    figures |= {f"relearning-{kind}": figure for kind, figure in relearnt.items()}
    folder = templates_dir()
    script = (folder / "report.js").read_text(encoding="utf-8")
    plotly, plotly_digest = _plotly()
    more = {
        "style": style(),
        "script": _raw(script),
        "policy": f"'sha256-{_digest(script)}' 'sha256-{plotly_digest}'",
        "plotly": plotly,
        "figures": {name: figure for name, figure in figures.items() if figure},
        "losses": list(losses),
        "curves": {name: tables.curve(view, name) for name in curves},
        "searches": tables.searches(view),
        "relearnt": {kind: (charts.RELEARNT[kind], tables.relearning(view, kind)) for kind in relearnt},
        "has_trade_off": trade_off is not None,
        "benchmarks": tables.benchmarks(view),
        "documents": tables.documents(view),
        "suites": {
            suite: tables.rates(view, suite) for suite in ("harmless", "ood", "attack", "benign") if view.sets(suite)
        },
        "attack_success": tables.attack_success(view),
        "worst_case_text": tables.worst_case_text(view),
        "refusals": tables.rates(view, "benign", "refusal_rate", better=-1),
        "thresholds": tables.thresholds(view),
        "leakage": tables.leakage(view),
        "seeds": tables.seeds(view),
        "costs": tables.costs(view),
        "peak_memory": tables.peak_memory(view),
        "samples": pack(view, run_dir / SAMPLES),
        "settings": _settings(context["manifest"]),
        "configs": {name: model["config"] for name, model in view.models.items() if model.get("config")},
    }
    return environment().get_template("report.html.j2").render(context | more)


def markdown(run: Finished) -> str:
    """report.md: at most `MARKDOWN_LIMIT` characters."""
    about = run.context | {"has_html": run.has_html, "items": tables.items(run.context["headline"])}
    return fitted(environment().get_template("report.md.j2").render(about))


def fitted(text: str, limit: int = MARKDOWN_LIMIT) -> str:
    """A text of sections that form feeds part, within `limit` characters.

    What stands before the first form feed comes first, cut after a whole line if need be. Each section begins with its
    heading, is folded where it is long, and left out, and named at the end, where it does not fit any more.
    """
    tidy = re.sub(r" +$", "", text, flags=re.MULTILINE)
    head, *sections = (re.sub(r"\n{3,}", "\n\n", part).strip() for part in tidy.split("\f"))
    left = limit - 1_000  # for the names of what is left out
    if len(head) > left:
        lines = head[:left].splitlines()[:-1]
        head = "\n".join(lines) + "\n\n*Cut here: too long for a comment.*"
        if head.count("<details>") > head.count("</details>"):
            head += "\n\n</details>"
    kept, out = [head], []
    left -= len(head)
    for section in filter(None, sections):
        heading, _, body = section.partition("\n")
        title = re.sub(r"\\(.)", r"\1", heading.lstrip("# "))  # Markdown's escapes mean nothing in an HTML tag
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
    """The configuration as a file for `--config`; nothing where the manifest has none."""
    import yaml

    config = manifest.get("config")
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=110)) if config else ""


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's script as base64 of gzip (2 MB instead of 5), and the digest that lets the page run it."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode("ascii"), _digest(script)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def style() -> Any:
    """The style sheet, as it goes into a page."""
    return _raw((templates_dir() / "report.css").read_text(encoding="utf-8"))


def _raw(text: str) -> Any:
    """Our own style and script go into the page as they are; nothing from a run ever does."""
    from markupsafe import Markup

    return Markup(text)


def environment() -> Any:
    """Jinja over `reports/templates`, with the filters that its templates use."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["set"] = typeset
    environment.filters["md"] = markdown_text
    environment.filters["tag"] = tag_text
    environment.filters["flat"] = flat
    environment.filters["seconds"] = seconds
    return environment


def typeset(raw: object) -> str:
    """Figures as print has them: a real minus, an arrow, and no line break before a per cent sign."""
    text = re.sub(r"(?<![\w-])-(?=[\d.])", "\u2212", str(raw)).replace(" -> ", " \u2192 ")
    return re.sub(r"(?<=\d) (?=%|points)", "\u00a0", text)


def markdown_text(raw: object, longest: int = 2_000) -> str:
    """Text for one line of Markdown: no markup, no table bars, no HTML; cut where it is very long."""
    text = html.escape(_line(raw, longest).replace(" -> ", " \u2192 "), quote=False)
    return re.sub(r"([\\`*_~\[\]|#])", r"\\\1", text)


def tag_text(raw: object, longest: int = 2_000) -> str:
    """Text for one line inside an HTML tag of a Markdown file, where Markdown is not read."""
    return html.escape(_line(raw, longest), quote=False)


def _line(raw: object, longest: int) -> str:
    text = " ".join(str(raw).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}\u2026"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (dotted name, text) pairs; a list of plain values stays one text."""
    if isinstance(value, dict) and value:
        pairs = []
        for key, inner in value.items():
            pairs += flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [pair for i, inner in enumerate(value) for pair in flat(inner, f"{prefix}[{i}]")]
    if isinstance(value, list | tuple):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    return [(prefix, "none" if value is None else str(value))]
