"""The GitHub Action: its shell steps are run as the runner would, and its inputs are the ones that its example gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_run import write_run

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"] if "name" in step}


def run_step(name: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The step's script in bash as GitHub starts it. `wpn-bench` is the real one for `check`; `full` writes its words down."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    stub = tools / "wpn-bench"
    stub.write_text(
        f'#!/bin/bash\nif [ "$1" = full ]; then printf "%s\\n" "$@" > words; else exec "{sys.executable}" -m wpn_bench "$@"; fi\n'
    )
    stub.chmod(0o755)
    (tools / "python").unlink(missing_ok=True)
    (tools / "python").symlink_to(sys.executable)
    given = dict.fromkeys(STEPS[name]["env"], "") | {
        "RUN": str(folder / "run"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=folder,
        env={**os.environ, **given, **env, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_every_expression_names_an_input_that_there_is() -> None:
    text = (ROOT / "action.yml").read_text()
    named = set(re.findall(r"inputs\.([\w-]+)", text))
    assert named == set(ACTION["inputs"])
    for step in STEPS.values():
        assert "${{" not in step.get("run", "")  # an input in a script could run what somebody wrote into it


def test_the_example_gives_inputs_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "examples" / "check.yml").read_text())
    (ours,) = (s for s in workflow["jobs"]["wpn-bench"]["steps"] if "wpn-bench" in s["uses"])
    assert set(ours["with"]) <= set(ACTION["inputs"])


def test_arguments_reach_the_command_as_words(tmp_path: Path) -> None:
    done = run_step("Run", tmp_path, ARGUMENTS="--methods wpn --forget 'my file.jsonl' --model $(touch pwned)")
    assert done.returncode == 0, done.stderr
    words = (tmp_path / "words").read_text().splitlines()
    given = ["--methods", "wpn", "--forget", "my file.jsonl", "--model", "$(touch", "pwned)"]
    assert words == ["full", "--out", str(tmp_path / "run"), *given]
    assert not (tmp_path / "pwned").exists()
    assert run_step("Run", tmp_path).returncode == 0
    assert (tmp_path / "words").read_text().splitlines() == ["full", "--out", str(tmp_path / "run")]


@pytest.mark.parametrize(
    ("gates", "code", "verdict"),
    [
        ("--min coherent_harmless_rate=0.9", 0, "pass"),
        ("--model ga", 3, "regression"),
        ("--min copa=0.8", 4, "inconclusive"),
    ],
)
@pytest.mark.slow
def test_the_verdict_goes_where_it_is_read(tmp_path: Path, gates: str, code: int, verdict: str) -> None:
    run = write_run(tmp_path / "run", n=400)
    (run / "report.md").write_text("the report\n")
    done = run_step("Check", tmp_path, GATES=gates)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "output").read_text() == f"verdict={verdict}\n"
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("### wpn-bench check: ")
    assert summary.endswith("the report\n")
    assert (run / "check.xml").is_file()


def test_a_baseline_that_is_not_there_fails_the_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", n=40)
    (run / "report.md").write_text("the report\n")
    done = run_step("Check", tmp_path, BASELINE="nowhere.json")
    assert done.returncode == 2
    assert "there is no baseline nowhere.json" in done.stderr
    assert not (tmp_path / "output").exists()
