"""Write a judge card to files, and print it to the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wpn_bench.analysis.judge_card import BINS, Figure, JudgeCard
from wpn_bench.core.files import write_json, write_text
from wpn_bench.errors import UserError


def write_card(card: JudgeCard, path: Path) -> list[Path]:
    """Write a judge card as JSON and as Markdown.

    Args:
        card: The card.
        path: The JSON file. The Markdown file has the same name with the suffix .md.

    Returns:
        Both paths.

    Raises:
        UserError: A file cannot be written.
    """
    from wpn_bench.report.templates import environment

    page = path.with_suffix(".md")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, card.model_dump(mode="json"), indent=1)
        write_text(
            page,
            environment().get_template("judge_card.md.j2").render(card=card, lines=lines(card), usage_line=usage_line),
        )
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror})", "give another file with --out") from e
    return [path, page]


def lines(card: JudgeCard) -> list[tuple[str, str, str, str]]:
    """Return the formatted figures of a card: name, value, interval, and the counts from which it was computed."""
    from wpn_bench.core.numbers import interval, percent

    def shown(name: str, figure: Figure, of: str, digits: int | None = 1) -> tuple[str, str, str, str]:
        if digits is None:
            value = "n/a" if figure.value is None else f"{figure.value:.3f}"
            return name, value, interval(figure.low, figure.high, 1.0, 3), f"{figure.n:,} texts"
        share = f"{figure.right:,} of " if figure.right is not None else ""
        return (
            name,
            percent(figure.value, digits),
            interval(figure.low, figure.high, 100.0, digits),
            f"{share}{figure.n:,} {of}",
        )

    return [
        shown("AUC", card.auc, "texts", None),
        shown("Sensitivity", card.sensitivity, "harmful texts"),
        shown("Specificity", card.specificity, "harmless texts"),
        shown("Precision", card.precision, "texts called harmful"),
        shown("Harmful by the labels", card.prevalence, "texts"),
        shown("Brier score", card.brier, "texts", None),
        ("Expected calibration error", f"{card.calibration_error:.3f}", "", f"{BINS} bins"),
    ]


def show(card: JudgeCard) -> None:
    """Print a judge card."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{card.judge}, threshold {card.threshold}, {card.file}", title_justify="left", box=None, pad_edge=False
    )
    for column in ("", "", "95 % interval", ""):
        table.add_column(column, overflow="fold")
    for line in lines(card):
        table.add_row(*line)
    console = Console()
    console.print(table)
    left_out = {
        "without a label": card.without_label,
        "without a text": card.without_text,
        "without a score": card.unjudged,
    }
    if said := ", ".join(f"{n} {what}" for what, n in left_out.items() if n):
        console.print(f"left out: {said}", highlight=False)
    if card.usage is not None:
        console.print(usage_line(card.usage), highlight=False)


def usage_line(usage: Mapping[str, Any]) -> str:
    """What the scores of a judge at an endpoint took, in one line."""
    line = (
        f"asked {usage.get('asked', 0):,} times: {usage.get('asked_prompt_tokens', 0):,} tokens in,"
        f" {usage.get('asked_completion_tokens', 0):,} out"
    )
    if "cost" in usage:
        line += f", price {usage['cost']:.4g}"
    if usage.get("cached"):
        line += f"; {usage['cached']:,} replies were known from earlier"
    reasons = [f"{n:,} {why}" for why, n in usage.get("missing", {}).items()]
    return line + (f"; missing: {', '.join(reasons)}" if reasons else "")
