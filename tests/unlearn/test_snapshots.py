from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wpn_bench import models
from wpn_bench.unlearn import checkpoints
from wpn_bench.unlearn.snapshots import Snapshots


@pytest.fixture
def kept(small_opt: Path, tmp_path: Path) -> Callable[..., Snapshots]:
    """`kept(2, 4, checkpoints=(3, 5))`: snapshots after these steps and checkpoints after those, as a killed training
    leaves them in `scratch`."""

    def make(*steps: int, checkpoints: tuple[int, ...] = ()) -> Snapshots:
        model, tokenizer = models.load(small_opt)
        made = Snapshots(steps, tokenizer, tmp_path / "out")
        made.out.mkdir()
        for step in steps:
            made.keep(tmp_path / "scratch", step, model)
        for step in checkpoints:
            put(tmp_path / "scratch" / f"checkpoint-{step}")
        return made

    return make


def put(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(folder.name)
    checkpoints.seal(folder)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_one_goes_on_beside_what_was_kept(kept: Callable[..., Snapshots], tmp_path: Path) -> None:
    before = kept(2, 4, 6, checkpoints=(3, 5)).go_on_from(tmp_path / "scratch")
    assert before == tmp_path / "scratch" / "checkpoint-5"
    # The model after step 6 is made again.
    assert names(tmp_path / "scratch") == {"step-2", "step-4", "checkpoint-3", "checkpoint-5"}


@pytest.mark.parametrize("damage", ["cut off", "gone", "not sealed"])
def test_a_checkpoint_past_a_damaged_snapshot_is_of_no_use(
    kept: Callable[..., Snapshots], tmp_path: Path, damage: str
) -> None:
    snapshots, scratch = kept(2, 4, checkpoints=(3, 5)), tmp_path / "scratch"
    weights = scratch / "step-4" / "model.safetensors"
    if damage == "cut off":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        weights.unlink()
    else:
        (scratch / "step-4" / checkpoints.SEAL).unlink()
    assert snapshots.go_on_from(scratch) == scratch / "checkpoint-3"
    assert names(scratch) == {"step-2", "checkpoint-3"}


def test_without_a_checkpoint_all_begins_anew(kept: Callable[..., Snapshots], tmp_path: Path) -> None:
    assert kept(2, 4).go_on_from(tmp_path / "scratch") is None
    assert names(tmp_path / "scratch") == set()


def test_what_was_kept_is_handed_over(kept: Callable[..., Snapshots], small_opt: Path, tmp_path: Path) -> None:
    snapshots = kept(2, 4)
    Snapshots((2, 4, 60), snapshots.tokenizer, snapshots.out).hand_over(tmp_path / "scratch")
    assert names(snapshots.out) == {"step-2", "step-4"}
    assert not (snapshots.out / "step-2" / checkpoints.SEAL).exists()
    first, second = (models.load(p)[0].state_dict() for p in (small_opt, snapshots.out / "step-4"))
    assert all(torch.equal(first[name], second[name]) for name in first)
