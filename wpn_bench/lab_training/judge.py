"""The lab's judge, loaded by the `detoxify` package itself from the shipped checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench import lab
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from detoxify import Detoxify

__all__ = ["JUDGE_FOLDER", "load_judge"]

JUDGE_FOLDER = Path(lab.__file__).parent / "assets" / "judge"


def load_judge(device: str = "cpu", folder: Path = JUDGE_FOLDER) -> Detoxify:
    """A `detoxify.Detoxify` with the lab's weights, in float32. Raises UserError where the assets are missing."""
    path = folder / "judge.ckpt"
    if not path.is_file():
        raise UserError(
            f"the lab's judge is not at {path}",
            "make it with `python -m wpn_bench.lab_training.build --comments FILE --only judge`",
        )
    from wpn_bench.harmless.judges.detoxify import load_checkpoint

    judge: Detoxify = load_checkpoint(path, device)
    return judge
