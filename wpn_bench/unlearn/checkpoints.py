"""Checkpoints that a killed training goes on from. One counts only if it is whole, to the last byte.

A folder `checkpoint-<step>` is filled by the trainer and sealed last with the SHA-256 of each of its files; one that
lacks the seal, or no longer fits it, is as if it were not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from wpn_bench.core.files import digest_file, write_json

SEAL = "seal.json"
KEEP = 2  # the newest, and one to fall back on


def seal(folder: Path) -> None:
    """Declare what lies in the folder whole."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p != folder / SEAL]
    files = {str(p.relative_to(folder)): digest_file(p) for p in found}
    write_json(folder / SEAL, files)


def prune(root: Path) -> None:
    """Remove all checkpoints under `root` but the newest two."""
    for _, old in _found(root)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def latest(root: Path, is_of_use: Callable[[int], bool] = lambda step: True) -> Path | None:
    """The newest whole checkpoint under `root`, of a step that is of use; damaged and useless ones are removed on the way."""
    for step, folder in _found(root):
        if is_whole(folder) and is_of_use(step):
            return folder
        shutil.rmtree(folder)
    return None


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(folder.name.removeprefix("checkpoint-"))


def is_whole(folder: Path) -> bool:
    """Whether all that was sealed is there as it was."""
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return bool(files) and all(digest_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _found(root: Path) -> list[tuple[int, Path]]:
    """Checkpoints, whole or not, the newest first."""
    steps = [(p.name.removeprefix("checkpoint-"), p) for p in root.glob("checkpoint-*")]
    return sorted(((int(step), p) for step, p in steps if step.isdecimal()), reverse=True)
