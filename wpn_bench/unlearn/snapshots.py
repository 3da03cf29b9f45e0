"""Snapshots of the model after some steps of a training, in `step-<k>/` of its output folder.

During the training, they are stored next to its checkpoints, with the same `seal.json`. So a killed training keeps its
snapshots when it is resumed.
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
    """The snapshots of a training.

    Attributes:
        steps: Steps after which the model is stored.
        tokenizer: Tokenizer that is saved with each model.
        out: Output folder of the training.
    """

    steps: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    out: Path

    def go_on_from(self, root: Path) -> Path | None:
        """Return the newest checkpoint in `root` that has all earlier snapshots complete, and remove newer files."""
        before = checkpoints.latest(root, lambda step: self._is_of_use(root, step))
        reached = checkpoints.step_of(before) if before else 0
        for k in self.steps:
            if k > reached:
                shutil.rmtree(self.folder(root, k), ignore_errors=True)
        return before

    def folder(self, root: Path, step: int) -> Path:
        """Return the folder of a snapshot.

        Args:
            root: Folder of the checkpoints.
            step: Step after which it is written.

        Returns:
            The folder.
        """
        return root / f"step-{step}"

    def keep(self, root: Path, step: int, model: PreTrainedModel) -> None:
        """Write a snapshot.

        Args:
            root: Folder of the checkpoints.
            step: Number of finished steps.
            model: The model after this step.
        """
        folder = self.folder(root, step)
        model.save_pretrained(folder, max_shard_size=SHARD)
        self.tokenizer.save_pretrained(folder)
        checkpoints.seal(folder)

    def hand_over(self, root: Path) -> None:
        """Move the snapshots from `root` to the output folder. A training that stopped early has fewer snapshots."""
        for k in self.steps:
            folder = self.folder(root, k)
            if folder.exists():
                (folder / checkpoints.SEAL).unlink()
                shutil.move(folder, self.out / folder.name)

    def _is_of_use(self, root: Path, step: int) -> bool:
        return all(checkpoints.is_whole(self.folder(root, k)) for k in self.steps if k <= step)
