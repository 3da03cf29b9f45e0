"""Models as they were after some steps of a training, in `step-<k>/` of the folder that it leaves.

Until the training has ended they lie beside its checkpoints, sealed as these are, so that one that is killed goes on with
those that it had kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.models import SHARD
from wpn_bench.unlearn import checkpoints

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Snapshots:
    """What is kept of a training: the model after each of `steps`, with its tokenizer, for the folder `out`."""

    steps: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    out: Path

    def go_on_from(self, root: Path) -> Path | None:
        """The newest checkpoint under `root` beside which all snapshots up to it are whole. What is newer goes."""
        before = checkpoints.latest(root, lambda step: all(self._is_whole(root, k) for k in self.steps if k <= step))
        reached = checkpoints.step_of(before) if before else 0
        for k in self.steps:
            if k > reached:
                shutil.rmtree(_folder(root, k), ignore_errors=True)
        return before

    def keep(self, root: Path, step: int, model: PreTrainedModel) -> None:
        """Write the model after this step, sealed, under `root`."""
        folder = _folder(root, step)
        model.save_pretrained(folder, max_shard_size=SHARD)
        self.tokenizer.save_pretrained(folder)
        checkpoints.seal(folder)

    def hand_over(self, root: Path) -> None:
        """Move what was kept under `root` to where it belongs; a training that ended early has reached fewer steps."""
        for k in self.steps:
            folder = _folder(root, k)
            if folder.exists():
                (folder / checkpoints.SEAL).unlink()
                shutil.move(folder, self.out / folder.name)

    def _is_whole(self, root: Path, step: int) -> bool:
        return checkpoints.is_whole(_folder(root, step))


def _folder(root: Path, step: int) -> Path:
    return root / f"step-{step}"
