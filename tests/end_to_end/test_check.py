"""A pull request on the lab, by the command line: a baseline of the main branch, then a good change, a bad one, too few items."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from wpn_bench.cli.main import main

pytestmark = pytest.mark.slow

# The in-domain prompts and the benchmarks, which the check rests on, without the rest of `full`. A fifth of WPN's steps and 120
# items a set are enough here.
CONFIG = """\
methods: {wpn: {steps: 20}, ga: {steps: 8, batch_size: 4, lr: 0.01}}
ood: []
benign: []
attacks: []
limit: 120
"""
GATES = """\
min: {coherent_harmless_rate: 0.9}
"""


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, which has the libraries in memory; the run of test_lab.py is one of its own."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["wpn-bench", *words])
        patch.setattr("wpn_bench.harmless.stages.REFERENCES", 50)  # as the commands of `offline_commands`
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the main branch and of two changes to it, over one store, and the main branch's baseline."""
    folder = tmp_path_factory.mktemp("pull_request")
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "gates.yaml").write_text(GATES)

    def full(out: str, *more: str) -> None:
        done = typed(folder, "full", "--config", "run.yaml", "--store", "store", "--out", out, *more)
        assert done.returncode == 0, done.stderr

    full("main", "--methods", "wpn")
    # A change that should do no harm: another order of the data; and one that ruins the model: gradient ascent.
    full("good", "--methods", "wpn", "--seeds", "5,")
    full("bad", "--methods", "ga")
    full("tiny", "--methods", "wpn", "--limit", "8")
    saved = typed(folder, "check", "main", "--save-baseline", "main.json")
    assert saved.returncode == 0, saved.stderr
    return folder


def test_a_good_change_passes(folder: Path) -> None:
    checked = typed(
        folder, "check", "good", "--baseline", "main.json", "--gates", "gates.yaml", "--json", "good.out.json"
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    findings = json.loads((folder / "good.out.json").read_text())["findings"]
    assert {f["outcome"] for f in findings} == {"pass"}
    nine = findings[0]
    assert (nine["target"], nine["required"]) == ("nine", True)
    assert -0.02 <= nine["low"] <= nine["value"] <= nine["high"]
    assert nine["old"] > 0.9


def test_gradient_ascent_exits_3_and_the_benchmarks_are_named(folder: Path) -> None:
    checked = typed(folder, "check", "bad", "--model", "ga", "--against", "wpn", "--baseline", "main.json")
    assert checked.returncode == 3, checked.stdout + checked.stderr
    named = {line.split()[1].rstrip(",") for line in checked.stdout.splitlines() if line.startswith("regression ")}
    tasks = {"lambada", "hellaswag", "winogrande", "copa", "arc_easy", "arc_challenge", "piqa", "mathqa", "pubmedqa"}
    assert len(named & tasks) >= 6
    assert "Benchmark average" in checked.stdout.splitlines()[-1]


def test_a_tiny_sample_exits_4(folder: Path) -> None:
    saved = typed(folder, "check", "tiny", "--save-baseline", "tiny.json")
    assert saved.returncode == 0, saved.stderr
    checked = typed(folder, "check", "tiny", "--baseline", "tiny.json")
    assert checked.returncode == 4, checked.stdout + checked.stderr
    assert typed(folder, "check", "tiny", "--baseline", "tiny.json", "--inconclusive", "pass").returncode == 0


def test_other_items_are_refused(folder: Path) -> None:
    checked = typed(folder, "check", "tiny", "--baseline", "main.json")
    assert checked.returncode == 2
    assert "cannot be compared" in checked.stderr
    assert len(checked.stderr.splitlines()) == 1
