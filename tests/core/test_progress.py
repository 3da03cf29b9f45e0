from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from wpn_bench.core.progress import Bars, Reporter, Stopwatch, in_parts, reporter
from wpn_bench.core.progress_lines import Lines


def report_run(output: Reporter) -> None:
    """Report a short run like the pipeline."""
    with output:
        with output.activity("find the model"):
            pass
        output.plan(2)
        for label, status in (("train wpn", "done"), ("train ga", "failed")):
            output.start(label)
            advance: Callable[[int], None] = output.items(10, "steps")
            for _ in range(5):
                advance(2)
            output.finish(label, status, 1.25)
        output.note("note: two prompts were dropped")


def test_lines_when_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = reporter()
    assert isinstance(chosen, Lines)
    report_run(chosen)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "job 2 of 2, train ga: failed in 1.2 s" in captured.err


def test_quiet_is_silent_but_for_notes(capsys: pytest.CaptureFixture[str]) -> None:
    report_run(reporter(quiet=True))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "note: two prompts were dropped\n")


def test_a_line_for_each_job_when_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    report_run(reporter(verbose=True, quiet=True))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split() for line in captured.err.splitlines()[:2]] == [
        ["done", "1.2", "s", "train", "wpn"],
        ["failed", "1.2", "s", "train", "ga"],
    ]


def test_bars_on_a_terminal_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert not isinstance(reporter(quiet=True), Bars)
    chosen = reporter()
    assert isinstance(chosen, Bars)
    report_run(chosen)
    shown = screen.getvalue()
    assert "run" in shown
    assert "2/2" in shown
    assert "failed train ga" in shown
    assert "note: two prompts were dropped" in shown


def test_jobs_announced_later_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning announces its jobs before the run announces its own; one bar counts all of them."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with reporter() as bars:
        for label, more in (("tune wpn, trial 0/1: train", 1), ("train wpn", 2)):
            bars.plan(more)
            bars.start(label)
            bars.finish(label, "done", 1.0)
    assert "2/3" in screen.getvalue()


def test_concurrent_jobs_have_one_bar_each() -> None:
    bars = Bars()
    bars._progress.disable = True
    with bars:
        bars.plan(3)
        for label in ("one", "other"):
            bars.start(label)
        one, other = bars.items(10, "steps", "one"), bars.items(20, "steps", "other")
        bars.items(30, "steps", "ended before it was told of")(3)
        one(4)
        other(5)
        shown = {task.description: (task.completed, task.total) for task in bars._progress.tasks}
        assert shown == {"run": (0, 3), "one": (4, 10), "other": (5, 20)}
        bars.finish("one", "done", 1.0)
        other(1)
        bars.items(7, "steps")(2)  # of the job that started last
        shown = {task.description: (task.completed, task.total) for task in bars._progress.tasks}
        assert shown == {"run": (1, 3), "other": (2, 7)}


def test_a_stopwatch_runs() -> None:
    watch = Stopwatch()
    first = watch.seconds
    assert 0 <= first <= watch.seconds


@pytest.mark.parametrize(
    ("parts", "items", "counted"), [(7, 3, [0, 0, 1, 0, 1, 0, 1]), (2, 5, [2, 3]), (3, 3, [1, 1, 1])]
)
def test_items_in_parts_are_counted_by_their_share(parts: int, items: int, counted: list[int]) -> None:
    said: list[int] = []
    advance = in_parts(parts, items, said.append)
    for _ in range(parts):
        advance(1)
    assert said == [n for n in counted if n]
    assert sum(said) == items
    in_parts(0, 0, said.append)(0)
