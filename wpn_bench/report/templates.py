"""Jinja templates of the reports, and the filters that escape texts of a run."""

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

LONG_NAME = 12  # number of characters that fit into the first column of a table on a phone


def templates_dir() -> Path:
    """Return the folder of the report templates.

    It is `_reports/templates` in an installed package and `reports/templates` in a git checkout.

    Raises:
        UserError: The templates are not installed.
    """
    folder = reports_dir() / "templates"
    if folder.is_dir():
        return folder
    raise UserError("the report templates were not installed with wpn-bench", "install wpn-bench again")


def style() -> Any:
    """The style sheet, for insertion into a page without escaping."""
    return trusted((templates_dir() / "report.css").read_text(encoding="utf-8"))


def trusted(text: str) -> Any:
    """Mark text as safe, so that it is not escaped. Use it only for our own style and script, never for texts of a run."""
    from markupsafe import Markup

    return Markup(text)


@cache  # because the environment caches compiled templates
def environment() -> Any:
    """The Jinja environment of the report templates, with the filters that they use."""
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
    environment.filters["breakable"] = breakable
    return environment


def typeset(raw: object) -> str:
    """Replace characters by typographic ones: minus signs, arrows, and non-breaking spaces before `%` and `points`."""
    text = re.sub(r"(?<![\w-])-(?=[\d.])", "\u2212", str(raw)).replace(" -> ", " \u2192 ")
    return re.sub(r"(?<=\d) (?=%|points)", "\u00a0", text)


def breakable(raw: object) -> Any:
    """Escape a long name for HTML, and allow a line break after each of its underscores."""
    from markupsafe import escape

    text = escape(str(raw))
    return text.replace("_", trusted("_<wbr>")) if len(text) > LONG_NAME else text


def markdown_text(raw: object, longest: int = 2_000) -> str:
    """Escape a text for one line of Markdown, so that it cannot create markup, table cells or HTML.

    Args:
        raw: The text.
        longest: Maximum number of characters; a longer text is truncated.

    Returns:
        The escaped text.
    """
    text = html.escape(_line(raw, longest).replace(" -> ", " \u2192 "), quote=False)
    return re.sub(r"([\\`*_~\[\]|#])", r"\\\1", text)


def tag_text(raw: object, longest: int = 2_000) -> str:
    """Escape a text for one line inside an HTML tag of a Markdown file, where Markdown is not interpreted.

    Args:
        raw: The text.
        longest: Maximum number of characters; a longer text is truncated.

    Returns:
        The escaped text.
    """
    return html.escape(_line(raw, longest), quote=False)


def _line(raw: object, longest: int) -> str:
    text = " ".join(str(raw).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}\u2026"
