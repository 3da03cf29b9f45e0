"""Labels in the terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import termios
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_run import write_run

from wpn_bench.analysis.label_sample import draw_sample
from wpn_bench.report.label_session import Session
from wpn_bench.report.label_terminal import EMPTY, keys_of, printable, run_terminal
from wpn_bench.runs.files import SAMPLES
from wpn_bench.runs.finished import Run
from wpn_bench.runs.label_file import HARMFUL, HARMLESS, SKIPPED, UNDECIDED, read_labels

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eabc\nsecond\tline \U0001f600"


def keys(typed: str) -> Callable[[], str]:
    waiting: Iterator[str] = iter(typed)
    return lambda: next(waiting, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", n=30, tasks=())


def label(folder: Path, typed: str) -> tuple[list[str | None], str]:
    """The labels after these keys, in the order of the sample, and what was printed."""
    sample = draw_sample(Run.read(folder), 40)
    sample = replace(sample, drawn=tuple({one.exchange: one for one in sample.drawn}.values())[:12])
    out = io.StringIO()
    run_terminal(Session(folder, sample, "1"), "Harmful?", keys(typed), out)
    said = read_labels(folder).by("1")
    return [said[e].label if e in said else None for e in sample.exchanges], out.getvalue()


def test_keys_label(folder: Path) -> None:
    said, printed = label(folder, "12xs3uq1")
    assert said[:5] == [HARMLESS, HARMFUL, SKIPPED, None, None]
    assert printed.startswith("Harmful?\n1 harmless")
    assert "--- 3 of 12, 1 skipped ---" in printed


def test_the_end_of_the_input_ends(folder: Path) -> None:
    assert label(folder, "S3")[0][:3] == [SKIPPED, UNDECIDED, None]


def test_after_the_last_one_it_may_be_taken_back(folder: Path) -> None:
    said, printed = label(folder, "1" * 12 + "1u2q")
    assert said == [HARMLESS] * 11 + [HARMFUL]
    assert "All 12 answers are labelled" in printed


def test_an_answer_cannot_control_the_terminal(folder: Path) -> None:
    frame = pd.read_parquet(folder / SAMPLES)
    frame["response"], frame["prompt"] = HOSTILE, HOSTILE + frame["item_id"]
    frame.to_parquet(folder / SAMPLES)
    printed = label(folder, "1")[1]
    assert "second\tline \U0001f600" in printed
    assert not {c for c in printed if not c.isprintable()} - {"\n", "\t"}


def test_an_empty_answer_is_said_to_be_empty(folder: Path) -> None:
    frame = pd.read_parquet(folder / SAMPLES)
    frame["response"] = " \n"
    frame.to_parquet(folder / SAMPLES)
    assert EMPTY in label(folder, "1")[1]


@pytest.mark.parametrize(
    ("typed", "read"),
    [(b"1", "1"), (b"\x1b[3~", "\x1b[3~"), (b"\x1b[15~", "\x1b[15~"), (b"\x04", ""), (b"\xff", "\ufffd")],
)
def test_a_key_of_a_terminal_and_what_is_none(typed: bytes, read: str) -> None:
    """Delete is sent as ESC [ 3 ~, F5 as ESC [ 1 5 ~: these are no labels."""
    keyboard, terminal = pty.openpty()
    with open(terminal) as stdin:
        before = termios.tcgetattr(terminal)
        with keys_of(stdin) as key:
            os.write(keyboard, typed)
            assert select.select([terminal], [], [], 10)[0]
            assert key() == read
        assert termios.tcgetattr(terminal) == before
    os.close(keyboard)


def test_only_one_character_is_a_key(folder: Path) -> None:
    waiting = iter(["12", "\x1b[3~", "unsure", "2"])
    sample = draw_sample(Run.read(folder), 12)
    run_terminal(Session(folder, sample, "1"), "Harmful?", lambda: next(waiting, ""), io.StringIO())
    assert [line.label for line in read_labels(folder).lines] == [HARMFUL]


def test_line_ends_stay() -> None:
    assert printable("a\r\nb\rc\u2028d") == "a\nb\ufffdc\u2028d"
