"""The command `label`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wpn_bench.cli.options import positive, split_all_names
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from wpn_bench.report.label_session import Session


def label(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    n: Annotated[
        int | None, typer.Option("--n", help="How many answers to draw (default 50; or as many as last time).")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Only answers of these models (repeatable, or with commas)."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Only answers to these prompt sets or suites (repeatable, or with commas; default: all but benign).",
        ),
    ] = None,
    question: Annotated[str | None, typer.Option(help="What the annotator is asked.")] = None,
    annotator: Annotated[str, typer.Option(help="Who labels; several people may label the same answers.")] = "1",
    terminal: Annotated[bool, typer.Option("--terminal", help="Label in the terminal, not in a page.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Only print what the labels say.")] = False,
    port: Annotated[int, typer.Option(help="Port of the page (default: any free one).")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser; only print the address.")] = False,
) -> None:
    """Label a sample of a run's answers by hand, blind to model and judge: what is the judge worth on them?

    [bold]wpn-bench label runs/today[/bold]            opens a page on this machine; keys 1, 2, 3 label

    [bold]wpn-bench label runs/today --summary[/bold]  prints the judge's errors, and each model's corrected harmless rate

    Labels are stored at once, in labels.jsonl of the run. Type the same command again to continue.
    """
    from wpn_bench.analysis.label_sample import DEFAULT_N, draw_sample
    from wpn_bench.report import label_session, label_summary
    from wpn_bench.runs import label_file
    from wpn_bench.runs.finished import Run

    finished = Run.read(run)
    known = label_file.read_labels(run)
    last = known.samples[-1] if known.samples else None
    wanted = positive("--n", n) or (last.n if last else DEFAULT_N)
    chosen, asked = split_all_names(models), split_all_names(sets)
    try:  # what is not given is as it was the last time
        sample = draw_sample(
            finished, wanted, chosen or (last.models if last else ()), asked or (last.sets if last else ())
        )
    except UserError:
        sample = draw_sample(
            finished, wanted, chosen, asked
        )  # the run may have been computed again without these models
    question = question or (last.question if last else label_session.QUESTION)

    def summed_up() -> str:
        labels = label_file.read_labels(run)
        return label_summary.as_text(label_summary.summarise(finished, sample, labels, question))

    if summary:
        if not known.lines:
            typer.echo(f"nobody has labelled any answer of {run.name}: wpn-bench label RUN")
            return
        typer.echo(summed_up())
        return
    judge = str(finished.view.run.get("judge") or "")
    line = label_file.SampleLine(wanted, sample.models, sample.sets, question, judge, _now())
    label_file.check_writable(run)
    if last is None or replace(last, time="") != replace(line, time=""):
        label_file.append(run, line)
    session = label_session.Session(run, sample, annotator)
    try:
        if terminal:
            from wpn_bench.report.label_terminal import keys_of, run_terminal

            with keys_of(sys.stdin) as read:
                run_terminal(session, question, read, sys.stdout)
        else:
            _serve(session, question, summed_up, port, not no_browser)
    except KeyboardInterrupt:
        typer.echo("")
    shown = session.show()
    typer.echo(f"{shown.done} of {shown.total} answers are labelled, and stored in {label_file.LABELS} of the run.")
    if shown.done < shown.total:
        typer.echo("To continue, type the same command again.")
    typer.echo("\n" + summed_up())


def _serve(session: Session, question: str, summed_up: Callable[[], str], port: int, browse: bool) -> None:
    from wpn_bench.report.label_page import LabelServer

    with LabelServer(session, question, summed_up, port) as server:
        typer.echo(f"Label on this page: {server.url}")
        typer.echo("Ctrl-C, or Q on the page, ends. If this machine is a remote one, first type on yours:")
        typer.echo(f"  ssh -L {server.server_address[1]}:127.0.0.1:{server.server_address[1]} REMOTE")
        if browse and _has_display():
            import webbrowser

            webbrowser.open(server.url)
        server.serve_forever(poll_interval=0.1)


def _has_display() -> bool:
    """Whether a browser would open a window: in a bare terminal a browser of the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
