"""Jinja templates of the reports, and the filters that make foreign text safe in them."""

from __future__ import annotations

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from wpn_bench.core.flatten import flatten
from wpn_bench.core.numbers import seconds
from wpn_bench.core.paths import reports_dir
from wpn_bench.errors import UserError


def templates_dir() -> Path:
    """The report templates: in the wheel beside the package, in a checkout under `reports/`."""
    folder = reports_dir() / "templates"
    if folder.is_dir():
        return folder
    raise UserError("the report templates were not installed with wpn-bench", "install wpn-bench again")


def style() -> Any:
    """The style sheet, as it goes into a page."""
    return _raw((templates_dir() / "report.css").read_text(encoding="utf-8"))


def _raw(text: str) -> Any:
    """Our own style and script go into the page as they are; nothing from a run ever does."""
    from markupsafe import Markup

    return Markup(text)


@cache  # it keeps the compiled templates
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
    environment.filters["flat"] = flatten
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
