from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import write_run

from wpn_bench.analysis import baselines
from wpn_bench.analysis.baselines import Bits
from wpn_bench.core.paths import reports_dir
from wpn_bench.errors import UserError
from wpn_bench.prompts.templates import QUESTION_TEMPLATE
from wpn_bench.runs.metrics import ACCURACY, BENCHMARK


@given(st.lists(st.booleans()))
def test_bits_come_back(values: list[bool]) -> None:
    assert Bits.of(values).array().tolist() == values


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    made = baselines.of_run(write_run(tmp_path / "run", n=21, seeds=(0, 1)))
    baselines.write(made, tmp_path / "deep" / "baseline.json")
    assert baselines.read(tmp_path / "deep" / "baseline.json") == made
    assert made.models == ["base", "wpn", "ga"]
    assert made.seeds("base") == [None]
    assert made.seeds("wpn") == [0, 1]
    assert made.sets("ood") == ["notes", "games"]
    right = made.values("ga", BENCHMARK, "copa", ACCURACY)
    assert right[1].tolist() == [float(k < 0.3 * 21) for k in range(21)]
    good = made.values("wpn", "harmless", "in_domain", "coherent_harmless_rate")
    assert good[0].sum() == np.ceil(0.98 * 21)
    assert made.values("ga", "harmless", "in_domain", "coherent_harmless_rate")[0].sum() == 0  # it is incoherent


def test_what_was_not_judged_is_neither_good_nor_bad(tmp_path: Path) -> None:
    made = baselines.of_run(write_run(tmp_path / "run", n=10, unjudged={"wpn": 3}))
    values = made.values("wpn", "harmless", "in_domain", "harmless_rate")[0]
    assert np.isnan(values[:3]).all()
    assert not np.isnan(values[3:]).any()


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    one, other = (baselines.of_run(write_run(tmp_path / "run", n=20, shuffle=k)) for k in (None, 7))
    assert one.asked == other.asked or sorted(one.asked, key=str) == sorted(other.asked, key=str)
    for answers in one.answers:
        assert answers in other.answers


def test_a_file_holds_no_prompt_and_no_response(tmp_path: Path) -> None:
    baselines.write(baselines.of_run(write_run(tmp_path / "run", n=5)), tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text()
    assert "What of" not in text
    assert "Well." not in text


def test_it_is_small(tmp_path: Path) -> None:
    """Nine tasks of the real sizes are 26 thousand documents: a few kilobytes a model."""
    made = baselines.of_run(write_run(tmp_path / "run", {"base": (0, 0.5, 0)}, n=26_000, tasks=("x",), suites={}))
    baselines.write(made, tmp_path / "b.json")
    assert (tmp_path / "b.json").stat().st_size < 6_000


def test_the_shipped_baseline_is_of_the_lab_as_it_is() -> None:
    """The prompt sets and tasks are those of the preset; `nox -s check` holds a whole run against it."""
    from wpn_bench.benchmarks.definitions import read_folders, task_folders
    from wpn_bench.config import build

    shipped = baselines.read(reports_dir() / "baselines" / "lab.json")
    lab = build("lab", None)
    assert set(lab.methods) | {"base"} == set(shipped.models)
    assert shipped.sets(BENCHMARK) == [name.removeprefix("lab_") for name in lab.benchmarks]
    assert shipped.sets("attack") == list(lab.attacks)
    assert shipped.ground["template"] == QUESTION_TEMPLATE
    tasks = read_folders(task_folders(("lab",)))
    for one in (a for a in shipped.asked if a.suite == BENCHMARK):
        assert one.source == tasks[f"lab_{one.name}"].digest, one.name


def _break(found: dict[str, Any], how: str) -> str:
    if how == "no JSON":
        return json.dumps(found)[:-9]
    if how == "a list":
        return "[]"
    if how == "another version":
        found["version"] = 2
    elif how == "another key":
        found["more"] = 1
    elif how == "fewer bits":
        found["answers"][0]["flags"]["judged"]["bits"] = "AA=="
    elif how == "no base64":
        found["answers"][0]["flags"]["judged"]["bits"] = "??"
    elif how == "another number":
        found["answers"][0]["flags"]["judged"]["n"] = 8
    elif how == "a flag is missing":
        del found["answers"][0]["flags"]["judged"]
    elif how == "no such set":
        found["answers"][0]["name"] = "nowhere"
    return json.dumps(found)


@pytest.mark.parametrize(
    "how",
    [
        "no JSON",
        "a list",
        "another version",
        "another key",
        "fewer bits",
        "no base64",
        "another number",
        "a flag is missing",
        "no such set",
    ],
)
@pytest.mark.slow
def test_a_broken_file_is_one_line(tmp_path: Path, how: str) -> None:
    file = tmp_path / "b.json"
    baselines.write(baselines.of_run(write_run(tmp_path / "run", n=40)), file)
    file.write_text(_break(json.loads(file.read_text()), how))
    with pytest.raises(UserError, match=r"b\.json"):
        baselines.read(file)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no baseline"):
        baselines.read(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read"):
        baselines.read(tmp_path)
    run = write_run(tmp_path / "run", n=5)
    with pytest.raises(UserError, match="did not measure 'npo'; it has base, wpn, ga"):
        baselines.of_run(run, ["npo"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        baselines.write(baselines.of_run(run), tmp_path / "file" / "b.json")
    (run / "manifest.json").unlink()
    with pytest.raises(UserError, match="no manifest"):
        baselines.of_run(run)
