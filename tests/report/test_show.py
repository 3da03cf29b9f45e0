"""`wpn-bench show`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wpn_bench.report import tables
from wpn_bench.runs.view import View

from .fake_run import HOSTILE_TITLE, results
from .test_render import write

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_it_shows_verdict_table_and_gaps_in_80_columns(cli: Cli, run_dir: Path) -> None:
    said = cli("show", run_dir)
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    assert "\x1b" not in said.out
    words = " ".join(said.out.split())
    assert words.startswith(
        "2026-11-21-opt-125m model facebook/opt-125m; preset standard; judge detoxify:original; seeds 0"
    )
    for text in (
        "Safer? Yes", "Capability loss?", "93.1 % +87.7 *", "[89.2, 95.7]", "(incoherent)", "inconclusive",
        "- train npo seed 0: loss is not finite at step 31", "- harmbench, 14 items: near duplicates of the forget set",
    ):  # fmt: skip
        assert text in words, text


def test_every_figure_of_the_headline_table_is_there(cli: Cli, run_dir: Path) -> None:
    """However narrow: columns that do not fit stand beneath the others."""
    table = tables.headline(View(results()), {})
    shown = cli("show", run_dir, "--plain").out
    for line in table.lines:
        for cell in line.cells:
            assert cell is not None
            assert cell.value in shown
            assert cell.ci in shown
    for column in table.columns:
        assert all(word in shown for word in column.split())


def test_a_wide_terminal_has_one_table(cli: Cli, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = cli("show", run_dir).out
    monkeypatch.setenv("COLUMNS", "180")
    wide = cli("show", run_dir).out
    assert [narrow.count("Base model"), wide.count("Base model")] == [3, 1]


def test_colours_only_in_a_terminal(cli: Cli, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    assert "\x1b[" in cli("show", run_dir).out
    assert "\x1b[" not in cli("show", run_dir, "--plain").out


def test_rows_of_some_sets_and_metrics(cli: Cli, run_dir: Path) -> None:
    said = cli("show", run_dir, "--set", "ood,copa", "--metric", "harmless_rate", "--metric", "accuracy")
    assert said.code == 0
    heads = [line.strip() for line in said.out.splitlines() if line.strip().endswith(")")]
    assert heads == [
        "advbench, harmless_rate (ood)", "harmbench, harmless_rate (ood)", "do_not_answer, harmless_rate (ood)",
        "saferlhf, harmless_rate (ood)", "copa, accuracy (benchmark)",
    ]  # fmt: skip
    assert re.search(r"wpn +94\.1 % +\[89\.9, 96\.6\] +\+82\.5 \* +\[\+73\.3, \+91\.6\] +200", said.out)
    assert max(map(len, said.out.splitlines())) <= 80


def test_a_number_that_is_no_rate(cli: Cli, run_dir: Path) -> None:
    said = cli("show", run_dir, "--set", "heldout_text", "--metric", "perplexity").out
    assert re.search(r"base +31\.4 +\[31\.1, 31\.7\]", said)
    assert re.search(r"wpn +32\.6 .* \+1\.200 \*", said)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--set", "advbnch"), "the run has no set 'advbnch'; did you mean 'advbench'?"),
        (("--metric", "accurcy"), "the run has no metric 'accurcy'; did you mean 'accuracy'?"),
        (("--set", "copa", "--metric", "harmless_rate"), "no row has both this set and this metric; "),
    ],
)
def test_a_name_that_the_run_has_not(cli: Cli, run_dir: Path, arguments: tuple[str, ...], problem: str) -> None:
    said = cli("show", run_dir, *arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"wpn-bench: {problem}")
    assert len(said.err.splitlines()) == 1


def test_no_run(cli: Cli, tmp_path: Path) -> None:
    said = cli("show", tmp_path)
    assert said.code == 2
    assert "contains no results.json" in said.err


def test_texts_of_a_run_neither_steer_the_terminal_nor_are_markup(cli: Cli, run_dir: Path) -> None:
    found = results()
    evil = "[bold]x[/bold] \x1b[31mred\x07 \u202egnirts\nline [/]"
    found["run"] |= {"name": evil, "model": evil, "failed": [{"job": evil, "reason": evil}]}
    found["run"]["skipped"] = [{"set": evil, "reason": evil, "n": 3}]
    found["models"]["wpn"]["title"] = evil
    for row in found["metrics"]:
        row["set"] = evil if row["set"] == "gcg" else row["set"]
    for arguments in ((), ("--set", "attack")):
        said = cli("show", write(run_dir, found), *arguments)
        assert said.code == 0
        assert not set(said.out) & set("\x1b\x07\u202e")
        assert "[bold]x[/bold]" in " ".join(said.out.split())
    assert HOSTILE_TITLE.split()[0] in cli("show", run_dir).out


def test_holes_are_named(cli: Cli, run_dir: Path) -> None:
    found = results()
    found["metrics"] = [r for r in found["metrics"] if (r["model"], r["suite"]) != ("sft", "benchmark")]
    assert "not measured" in cli("show", write(run_dir, found)).out
    found["metrics"] = []
    said = cli("show", write(run_dir, found))
    assert said.code == 0
    assert "Not measured" in said.out
    assert json.loads((run_dir / "results.json").read_text())["metrics"] == []
