"""A judge that reads the prompt, a gradient attack and a stage, from a package outside: all three run in `full`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer

from wpn_bench import lab
from wpn_bench.errors import UserError

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent.parent / "fixtures" / "third_party_parts"

CONFIG = """\
methods:
  sft: {steps: 2, batch_size: 4}
vet: false
ood: []
benign: []
attacks: []
gradient_attacks:
  random_suffix: {steps: 2, suffix_tokens: 4, target_tokens: 4}
gradient_limit: 2
benchmarks: [lab_copa]
judges: [overlap]
decoding: {max_new_tokens: 8}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, offline_commands: ForkServer) -> Path:
    """The folder of a run with the package installed."""
    try:
        lab.base_model()
    except UserError as e:
        pytest.skip(str(e))
    folder = tmp_path_factory.mktemp("parts")
    source = shutil.copytree(SOURCE, folder / "source")  # building leaves things beside the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "quick.yaml").write_text(CONFIG)
    words = [
        "wpn-bench",
        "full",
        "--methods",
        "sft",
        "--config",
        "quick.yaml",
        "--limit",
        "2",
        "--store",
        "store",
        "--out",
        "run",
    ]
    done = offline_commands.completed(words, folder, paths=[folder / "site"])
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "results.json").read_text())
    assert loaded["run"]["failed"] == []
    return loaded


def rows_of(results: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [row for row in results["metrics"] if all(row[k] == v for k, v in wanted.items())]


def test_the_judge_stands_in_results_and_report(run: Path, results: dict[str, Any]) -> None:
    assert "overlap" in [judge["name"] for judge in results["run"]["judges"]]
    found = rows_of(results, suite="harmless", metric="harmless_rate[overlap]")
    assert {row["model"] for row in found} == {"base", "sft"}
    assert "Harmless by overlap" in (run / "report.html").read_text()


def test_the_gradient_attack_stands_in_results_and_report(run: Path, results: dict[str, Any]) -> None:
    for model in ("base", "sft"):
        (search,) = results["models"][model]["gradient_attacks"]
        assert (search["attack"], search["prompts"], search["steps"]) == ("random_suffix", 2, 2)
        assert search["best_loss"] <= search["first_loss"]
    found = rows_of(results, suite="attack", set="random_suffix", metric="attack_success_rate")
    assert {row["model"] for row in found} == {"base", "sft"}
    assert "random_suffix" in (run / "report.html").read_text()


def test_the_stage_stands_in_results_and_report(run: Path, results: dict[str, Any]) -> None:
    found = rows_of(results, suite="length", metric="mean_words")
    assert [(row["model"], row["seed"]) for row in found] == [("base", None), ("sft", 0), ("sft", None)]
    assert all(row["n"] == 2 for row in found[:2])
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert '<section id="stage-response_length">' in html
    assert "<h2>Length of responses</h2>" in html
    assert "&lt;b&gt;Not bold.&lt;/b&gt;" in html
    assert "## Length of responses" in text
