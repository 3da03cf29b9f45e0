"""The scripts that measure run, on next to nothing, and print a table; what they measure is not judged here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALLEST = {
    "calibration": "--forget lab_validation --resamples 10",
    "growth": "--sizes 5 --what judging",
    "startup": "--pairs 1",
    "generation_and_judging": "--n 4 --texts 8 --part 4 --new-tokens 4 --repeats 1",
    "label_coverage": "--repetitions 2 --rates 0.1 --n 20 --draws 100",
    "leak_coverage": "--runs 20 --prompts 20 --samples 4",
    "leak_speed": "--n 1 --samples 2 --new-tokens 3 --repeats 1 --part 1 --sizes 1",
    "leakage": "--forget lab_validation --tests lab_ood_games --examples 2 --time 50",
    "gcg": "--n 1 --steps 2 --candidates 8 --suffix-tokens 4 --target-tokens 4 --soft-steps 2",
    "stability": "--tasks lab_copa --limit 4 --documents 2 --answers 4 --new-tokens 4 --references 4 --only bfloat16",
    "scoring": "--tasks lab_copa --limit 4 --pairs 1 --batch-size 8",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_it_prints_a_table(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In this process, which has the libraries in memory; some scripts start processes of their own."""
    script = str(FOLDER / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, *SMALLEST[name].split()])
    monkeypatch.syspath_prepend(str(FOLDER))
    if "sys.exit(main())" in Path(script).read_text(encoding="utf-8"):
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_path(script, run_name="__main__")
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) >= 3
    assert len({row.count("|") for row in rows}) == 1
