"""The file of labels: what is appended is read again, whatever happened to the file."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from wpn_bench.errors import UserError
from wpn_bench.runs.label_file import (
    HARMFUL,
    HARMLESS,
    LABELS,
    SKIPPED,
    UNDECIDED,
    LabelLine,
    Labels,
    SampleLine,
    append,
    check_writable,
    read_labels,
)

SAMPLE = SampleLine(50, ("base", "wpn"), ("in_domain",), "Harmful?", "refusal", "2026-01-01T00:00:00+00:00")
LINE = LabelLine(
    "e1", "wpn", 0, "harmless", "in_domain", "i1", HARMFUL, "1", "2026-01-01T00:00:00+00:00", "wpn/0", 0.25
)


def lines(*said: tuple[str, str, str | None]) -> Labels:
    """Labels of (annotator, exchange, label)."""
    return Labels.of([], [replace(LINE, annotator=who, exchange=what, label=label) for who, what, label in said])


def test_lines_come_back(tmp_path: Path) -> None:
    written = [LINE, replace(LINE, seed=None, label=None, annotator="Zoë\u2028\nsecond line")]
    append(tmp_path, SAMPLE)
    for line in written:
        append(tmp_path, line)
    read = read_labels(tmp_path)
    assert read.samples == (SAMPLE,)
    assert list(read.lines) == written
    assert read.unreadable == 0
    assert len((tmp_path / LABELS).read_bytes().splitlines()) == 3


def test_no_file_is_no_label(tmp_path: Path) -> None:
    assert read_labels(tmp_path) == Labels()


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_a_crash_cut_off_takes_no_other_with_it(tmp_path: Path, cut: int) -> None:
    append(tmp_path, LINE)
    append(tmp_path, replace(LINE, exchange="e2"))
    file = tmp_path / LABELS
    file.write_bytes(file.read_bytes()[:-cut])
    append(tmp_path, replace(LINE, exchange="e3"))
    read = read_labels(tmp_path)
    whole = cut == 1  # only the line feed is lost
    assert [line.exchange for line in read.lines] == (["e1", "e2", "e3"] if whole else ["e1", "e3"])
    assert read.unreadable == (not whole)


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", "{}", '{"kind": "label"}', '{"kind": "label", "label": "maybe"}', "\x00", "[" * 100_000,
        json.dumps({"kind": "sample", "n": "many", "models": [], "sets": []}), json.dumps({"kind": "other"}),
    ],
)  # fmt: skip
def test_a_damaged_line_is_counted_and_left_out(tmp_path: Path, line: str) -> None:
    append(tmp_path, LINE)
    with (tmp_path / LABELS).open("a") as file:
        file.write(line + "\n")
    read = read_labels(tmp_path)
    assert read.lines == (LINE,)
    assert read.unreadable == 1


def test_bytes_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / LABELS).write_bytes(b"\xff\xfe\n")
    append(tmp_path, LINE)
    assert read_labels(tmp_path).lines == (LINE,)


def test_a_field_of_a_later_version_does_no_harm(tmp_path: Path) -> None:
    append(tmp_path, LINE)
    file = tmp_path / LABELS
    file.write_text(json.dumps(json.loads(file.read_text()) | {"comment": "new"}) + "\n")
    assert read_labels(tmp_path).lines == (LINE,)


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(who: int) -> None:
        for k in range(20):
            append(tmp_path, replace(LINE, annotator=str(who), exchange=f"{who}-{k}", item="x" * 5000))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = read_labels(tmp_path)
    assert len(read.lines) == 80
    assert read.unreadable == 0


def test_the_last_line_counts_and_none_takes_it_back() -> None:
    found = lines(("1", "a", HARMFUL), ("1", "b", HARMLESS), ("1", "a", HARMLESS), ("1", "b", None))
    assert {exchange: line.label for exchange, line in found.by("1").items()} == {"a": HARMLESS}
    assert list(lines(("1", "a", HARMFUL), ("1", "b", HARMFUL), ("1", "a", SKIPPED)).by("1")) == ["b", "a"]


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ([HARMFUL], HARMFUL), ([HARMFUL, HARMLESS], UNDECIDED), ([HARMFUL, HARMLESS, HARMLESS], HARMLESS),
        ([UNDECIDED, HARMFUL], HARMFUL), ([SKIPPED], SKIPPED), ([SKIPPED, UNDECIDED], UNDECIDED), ([None, SKIPPED], SKIPPED),
    ],
)  # fmt: skip
def test_the_label_of_most_annotators_counts(said: list[str | None], together: str) -> None:
    assert lines(*((str(who), "a", label) for who, label in enumerate(said))).together() == {"a": together}


def test_a_file_that_leads_out_of_the_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LABELS).symlink_to(tmp_path / "elsewhere")
    for use in (read_labels, check_writable, lambda run: append(run, LINE)):
        with pytest.raises(UserError, match="outside"):
            use(tmp_path / "run")
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LABELS).mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path)
    (tmp_path / LABELS).rmdir()

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="no space left on device"):
        append(tmp_path, LINE)
