"""`wpn-bench label`: the whole command, in the terminal and with its page."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_run import write_run

from wpn_bench.report import render
from wpn_bench.runs.files import SAMPLES
from wpn_bench.runs.label_file import LABELS, read_labels

ROOT = Path(__file__).parents[2]
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    judge = {"name": "detoxify:lab", "measures": "rude words", "threshold": 0.5, "decides": True}
    return write_run(tmp_path_factory.mktemp("label") / "run", n=60, tasks=(), run={"judges": [judge]})


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for file in made.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def type_keys(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`type_keys(keys, ...)`: label with these keys in a terminal."""

    def label(keys: str, *arguments: object) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys)))
        return cli("label", *arguments, "--terminal")

    return label


def test_a_sitting_in_the_terminal_and_what_it_says(type_keys: Callable[..., Any], cli: Cli, run: Path) -> None:
    first = type_keys("1" * 20 + "q", run)
    assert first.code == 0, first.err
    assert "20 of " in first.out
    assert "To continue, type the same command again." in first.out
    assert len(read_labels(run).lines) == 20
    second = type_keys("1" * 50, run)
    assert "To continue" not in second.out
    summary = cli("label", run, "--summary")
    assert summary.code == 0
    said = " ".join(summary.out.split())
    assert re.match(
        r"50 of 50 drawn answers .*labelled by 1 person, of those to in_domain, notes, games, typos\.", said
    )
    assert "detoxify:lab" in summary.out
    rows = {line.split()[0]: line for line in summary.out.splitlines() if line}
    assert rows["BASE"].split()[:2] == ["BASE", "240"]
    assert "100.0 % [" in rows["BASE"]  # all were labelled harmless
    assert len(read_labels(run).samples) == 1


def test_nobody_has_labelled(cli: Cli, run: Path) -> None:
    said = cli("label", run, "--summary")
    assert said.code == 0
    assert "nobody has labelled" in said.out
    assert not (run / LABELS).exists()


def test_options_of_the_last_time_hold_until_others_are_given(type_keys: Callable[..., Any], run: Path) -> None:
    type_keys("1", run, "--model", "wpn,base", "--set", "ood", "--n", 30, "--question", "Rude?")
    assert "Rude?" in type_keys("1", run).out
    last = read_labels(run).samples
    assert len(last) == 1
    assert (last[0].n, last[0].models, last[0].sets) == (30, ("base", "wpn"), ("notes", "games"))
    type_keys("1", run, "--n", 40)
    assert [one.n for one in read_labels(run).samples] == [30, 40]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "wpm"], "did you mean 'wpn'|wpn"), (["--set", "in_doman"], "in_domain"), (["--n", "0"], "--n 0"),
        (["--n", "4"], "too few"), (["--port", "99999"], "port 99999"), (["--port", "-1"], "port"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_with_a_hint_and_writes_nothing(
    cli: Cli, run: Path, arguments: list[str], said: str
) -> None:
    done = cli("label", run, "--no-browser", *arguments)
    assert done.code == 2
    assert re.search(said, done.err)
    assert len(done.err.splitlines()) == 1
    assert read_labels(run).lines == ()


def test_a_folder_that_is_no_run(cli: Cli, tmp_path: Path) -> None:
    done = cli("label", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)


def test_a_run_that_cannot_be_written_says_so_at_once(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root permissions do not hold, so opening the file is what fails."""
    opened = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith(LABELS):
            raise PermissionError(13, os.strerror(13))
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    done = cli("label", run, "--terminal")
    assert done.code == 2
    assert "permission denied" in done.err
    assert cli("label", run, "--summary").code == 0


def test_the_report_shows_the_labels(type_keys: Callable[..., Any], run: Path) -> None:
    type_keys("12" * 25, run)
    page, markdown = (path.read_text(encoding="utf-8") for path in render(run))
    for text in (page, markdown):
        assert "Labels of this run" in text
        assert "Corrected by labels" in text


def test_a_run_computed_again_with_other_answers(type_keys: Callable[..., Any], cli: Cli, run: Path) -> None:
    type_keys("1" * 50, run)
    frame = pd.read_parquet(run / SAMPLES)
    frame["response"] = "Other."
    frame.to_parquet(run / SAMPLES)
    summary = cli("label", run, "--summary").out
    assert summary.startswith("0 of 50 drawn answers")
    assert re.search(r"\d+ labels are of answers that are not in this sample", " ".join(summary.split()))
    frame = frame[frame["model"] != "wpn"]
    frame.to_parquet(run / SAMPLES)
    page = render(run, ("html",))[0].read_text(encoding="utf-8")
    assert "The labels cannot be used: unknown model" in page
    assert "Label the answers of this run again" in page
    again = type_keys("1", run, "--model", "base")  # and the command draws from what there is
    assert again.code == type_keys("1", run).code == 0


@pytest.mark.parametrize("end", ["signal", "page"])
@pytest.mark.slow
def test_the_page_is_served_until_it_is_ended(run: Path, end: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "wpn_bench", "label", str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+/\S+/", process.stdout.readline())

        def ask(what: str, body: Any = None) -> Any:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url + what, data, {"Content-Type": "application/json"})
            return json.load(urllib.request.urlopen(request, timeout=20))

        ask("say", {"key": ask("next")["key"], "label": "harmful"})
        if end == "page":
            assert "labelled by 1 person" in ask("finish", {})["summary"]
        else:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert err == ""
    assert re.search(r"^1 of \d\d answers are labelled", out, re.M)
    assert [line.label for line in read_labels(run).lines] == ["harmful"]
