"""A method in a package of its own, installed beside wpn-bench, runs in `full` like any other and stands in the report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer

from wpn_bench import lab
from wpn_bench.errors import UserError
from wpn_bench.runs.files import read_manifest

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent.parent / "fixtures" / "third_party_method"
Typed = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = """\
methods:
  unlikelihood: {steps: 3, batch_size: 4, weight: 0.5}
  sft: {steps: 2, batch_size: 4}
ood: [lab_ood_games]
benign: []
attacks: [typos]
benchmarks: [lab_copa]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed in `site/`."""
    try:
        lab.base_model()
    except UserError as e:
        pytest.skip(str(e))
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source")  # building leaves things beside the source
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "quick.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def typed(place: Path, offline_commands: ForkServer) -> Typed:
    def run(*arguments: str, plugged: bool = True) -> subprocess.CompletedProcess[str]:
        site = [place / "site"] * plugged
        return offline_commands.completed(["wpn-bench", *arguments], place, paths=site)

    return run


FULL = ("full", "--methods", "unlikelihood,sft", "--config", "quick.yaml", "--limit", "2", "--store", "store")


@pytest.fixture(scope="module")
def ran(typed: Typed) -> subprocess.CompletedProcess[str]:
    return typed(*FULL, "--out", "run")


def statuses(run: Path) -> dict[str, str]:
    """label -> status of every training of a run."""
    return {s["label"]: s["status"] for s in read_manifest(run)["stages"] if s["stage"] == "train"}


def test_it_is_listed(typed: Typed) -> None:
    said = typed("list", "unlikelihood")
    assert said.returncode == 0, said.stderr
    assert "L = CE(y+ | x) - weight * mean_t log(1 - p(y-_t | x, y-_<t))." in " ".join(said.stdout.split())
    assert "weight = 1.0" in said.stdout
    unplugged = typed("list", "unlikelihood", plugged=False)
    assert unplugged.returncode == 2


def test_it_runs_and_stands_in_the_report(place: Path, ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stderr
    results = json.loads((place / "run" / "results.json").read_text())
    mine = results["models"]["unlikelihood"]
    assert (mine["title"], mine["status"], mine["steps"]) == ("Unlikelihood training", "ok", [3])
    assert (mine["config"]["weight"], mine["config"]["batch_size"]) == (0.5, 4)
    assert set(mine["history"][0]["parts"]) == {"harmless_loss", "unlikelihood"}
    rows = [r for r in results["metrics"] if r["model"] == "unlikelihood"]
    others = [r for r in results["metrics"] if r["model"] == "sft"]
    assert [(r["suite"], r["set"], r["metric"]) for r in rows] == [(r["suite"], r["set"], r["metric"]) for r in others]
    assert {"harmless", "ood", "attack", "benchmark"} <= {r["suite"] for r in rows}
    for report in ("report.html", "report.md"):
        assert "Unlikelihood training" in (place / "run" / report).read_text()
    card = (place / "run" / "models" / "unlikelihood" / "README.md").read_text()
    assert "Welleck et al. 2019" in card


def test_when_its_code_changes_it_is_trained_anew(
    place: Path, typed: Typed, ran: subprocess.CompletedProcess[str]
) -> None:
    """Wherever in its package that was, and whether or not its author raised a version."""
    assert ran.returncode == 0
    train = ("train", *FULL[1:])
    assert typed(*train, "--out", "same").returncode == 0
    assert statuses(place / "same") == {"train unlikelihood (seed 0)": "cached", "train sft (seed 0)": "cached"}
    loss = place / "site" / "unlikelihood_method" / "loss.py"
    loss.write_text(loss.read_text().replace("mean_over(-(1 - p).log(), mask)", "2 * mean_over(-(1 - p).log(), mask)"))
    again = typed(*train, "--out", "changed")
    assert again.returncode == 0, again.stderr
    assert statuses(place / "changed") == {"train unlikelihood (seed 0)": "done", "train sft (seed 0)": "cached"}


def test_one_that_is_broken_is_named(place: Path, typed: Typed, ran: subprocess.CompletedProcess[str]) -> None:
    init = place / "site" / "unlikelihood_method" / "__init__.py"
    whole = init.read_text()
    try:
        init.write_text("import a_package_nobody_has\n")
        said = typed(*FULL, "--out", "broken")
    finally:
        init.write_text(whole)
    assert said.returncode == 2
    (line,) = said.stderr.splitlines()
    assert line.startswith("wpn-bench: the method 'unlikelihood' of the plug-in unlikelihood_method cannot be loaded")
    assert "a_package_nobody_has" in line
    assert not (place / "broken").exists()
