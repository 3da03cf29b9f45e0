"""import-linter holds the layers of pyproject.toml, and catches what breaks each of its contracts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 600


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` over the package in `folder`, whose pyproject.toml has the contracts."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as run; run()"
    wide = os.environ | {"COLUMNS": "200"}  # else a contract's name breaks over lines
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, env=wide, capture_output=True, text=True
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with pyproject.toml and the package's Python files."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file in (ROOT / "wpn_bench").rglob("*.py"):
        there = tmp_path / file.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there)
    return tmp_path


def test_every_contract_is_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_no_file_outside_the_lab_is_too_long() -> None:
    package = ROOT / "wpn_bench"
    files = [file for file in package.rglob("*.py") if package / "lab" not in file.parents]
    assert files
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: n for file, n in lines.items() if n > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/files.py", "from wpn_bench.pipeline import runner", "Layers: "),
        ("loose.py", "", "Layers: "),
        ("harmless/stages.py", "import lm_eval", "Only wpn_bench.benchmarks imports lm_eval"),
        ("jobs/store.py", "import ray", "imports ray"),
        ("pipeline/runner.py", "import typer", "Only wpn_bench.cli imports typer"),
        ("report/tables.py", "import torch", "wpn_bench.report imports no code"),
    ],
)
@pytest.mark.slow
def test_a_planted_violation_is_caught(copy: Path, module: str, line: str, contract: str) -> None:
    with (copy / "wpn_bench" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert len(broken) == 1
    assert contract in broken[0]
