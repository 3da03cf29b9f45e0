from __future__ import annotations

import json
from pathlib import Path

import pytest

from wpn_bench.unlearn.checkpoints import SEAL, latest, prune, seal, step_of


def checkpoint(root: Path, step: int, *, sealed: bool = True) -> Path:
    folder = root / f"checkpoint-{step}"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights").write_text(f"weights {step}")
    (folder / "deep" / "state").write_text("state")
    if sealed:
        seal(folder)
    return folder


def test_nothing_there(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None


def test_the_newest_by_number(tmp_path: Path) -> None:
    for step in (90, 100):
        checkpoint(tmp_path, step)
    assert latest(tmp_path) == tmp_path / "checkpoint-100"


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint(tmp_path, step)
    prune(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-15"}


@pytest.mark.parametrize(
    "damage",
    ["unsealed", "cut", "one bit", "file lost", "seal cut", "seal empty", "seal of another shape", "seal a list"],
)
def test_a_damaged_one_is_passed_over_and_removed(tmp_path: Path, damage: str) -> None:
    whole = checkpoint(tmp_path, 10)
    bad = checkpoint(tmp_path, 20, sealed=damage != "unsealed")
    if damage == "cut":
        (bad / "weights").write_text("weights")
    elif damage == "one bit":
        (bad / "weights").write_text("weights 21")
    elif damage == "file lost":
        (bad / "deep" / "state").unlink()
    elif damage.startswith("seal"):
        text = (bad / SEAL).read_text()
        (bad / SEAL).write_text(
            {"cut": text[:20], "empty": "", "of another shape": json.dumps({"weights": 3}), "a list": "[1]"}[damage[5:]]
        )
    assert latest(tmp_path) == whole
    assert not bad.exists()
    assert whole.exists()


def test_sealed_again_after_a_change(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 10)
    (folder / "weights").write_text("others")
    seal(folder)
    assert latest(tmp_path) == folder


def test_one_of_no_use_is_passed_over_and_removed(tmp_path: Path) -> None:
    older, newer = (checkpoint(tmp_path, step) for step in (9, 10))
    assert latest(tmp_path, lambda step: step < 10) == older
    assert step_of(older) == 9
    assert not newer.exists()


def test_all_damaged(tmp_path: Path) -> None:
    for step in (10, 20):
        (checkpoint(tmp_path, step) / "weights").unlink()
    assert latest(tmp_path) is None


def test_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-last").mkdir()
    (tmp_path / "lock").touch()
    checkpoint(tmp_path, 3)
    assert latest(tmp_path) == tmp_path / "checkpoint-3"
    assert (tmp_path / "checkpoint-last").exists()
