"""The scripts that measure run, on next to nothing, and print a table; what they measure is not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALLEST = {
    "growth": "--sizes 5 --what judging",
    "startup": "--pairs 1",
    "generation_and_judging": "--n 4 --texts 8 --part 4 --new-tokens 4 --repeats 1",
    "leakage": "--tests lab_validation,lab_ood_games --examples 2 --time 50",
    "gcg": "--n 1 --steps 2 --candidates 8 --suffix-tokens 4 --target-tokens 4",
    "scoring": "--tasks lab_copa --limit 4 --pairs 1 --batch-size 8",
}


@pytest.mark.parametrize("name", SMALLEST)
def test_it_prints_a_table(name: str) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), *SMALLEST[name].split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 3
    assert len({row.count("|") for row in rows}) == 1
