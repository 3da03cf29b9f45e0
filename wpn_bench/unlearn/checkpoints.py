"""Write and find the checkpoints from which a killed training is resumed.

The trainer writes a folder `checkpoint-<step>`. `seal.json` is written last, with the SHA-256 of each file. A
checkpoint is not used if this file is missing or does not match the other files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from wpn_bench.core.files import digest_file, write_json

SEAL = "seal.json"
KEEP = 2  # number of checkpoints that are kept; the second newest is used if the newest is damaged


def seal(folder: Path) -> None:
    """Write `seal.json`, which marks a checkpoint as complete."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / SEAL]
    files = {str(p.relative_to(folder)): digest_file(p) for p in found}
    write_json(folder / SEAL, files)


def prune(root: Path) -> None:
    """Remove all checkpoints under `root` except the newest two."""
    for _, old in _newest_first(root)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def latest(root: Path, is_of_use: Callable[[int], bool] = lambda step: True) -> Path | None:
    """Find the newest usable checkpoint, and remove newer ones that are damaged or not usable.

    Args:
        root: Folder of the checkpoints.
        is_of_use: Returns whether training can be resumed from a checkpoint that was written after a step.

    Returns:
        The folder of the checkpoint; None if there is none.
    """
    for step, folder in _newest_first(root):
        if is_whole(folder) and is_of_use(step):
            return folder
        shutil.rmtree(folder)
    return None


def step_of(folder: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(folder.name.removeprefix("checkpoint-"))


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is complete and unchanged."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(files) and all(digest_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _newest_first(root: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) for all checkpoints, complete or not, with the newest first."""
    steps = [(p.name.removeprefix("checkpoint-"), p) for p in root.glob("checkpoint-*")]
    return sorted(((int(step), p) for step, p in steps if step.isdecimal()), reverse=True)
