"""Checkpoints from which a killed training is resumed.

The trainer fills a folder `checkpoint-<step>`; last of all, `seal.json` is written with the SHA-256 of each file. A
checkpoint without this file, or with other files than it says, is incomplete and is not used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from wpn_bench.core.files import digest_file, write_json

SEAL = "seal.json"
KEEP = 2  # the newest, and the one before in case it is damaged


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / SEAL]
    files = {str(p.relative_to(folder)): digest_file(p) for p in found}
    write_json(folder / SEAL, files)


def prune(root: Path) -> None:
    """Remove all checkpoints under `root` except the newest two."""
    for _, old in _newest_first(root)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def latest(root: Path, is_of_use: Callable[[int], bool] = lambda step: True) -> Path | None:
    """Find the newest complete checkpoint; newer ones that are damaged or of no use are removed.

    Args:
        root: The folder of the checkpoints.
        is_of_use: Whether a checkpoint after this step can be resumed from.

    Returns:
        Its folder, or None.
    """
    for step, folder in _newest_first(root):
        if is_whole(folder) and is_of_use(step):
            return folder
        shutil.rmtree(folder)
    return None


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("checkpoint-"))


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is complete and unchanged."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(files) and all(digest_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _newest_first(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all checkpoints, complete or not, the newest first."""
    steps = [(p.name.removeprefix("checkpoint-"), p) for p in root.glob("checkpoint-*")]
    return sorted(((int(step), p) for step, p in steps if step.isdecimal()), reverse=True)
