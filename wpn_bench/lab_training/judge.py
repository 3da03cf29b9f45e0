"""Load the lab's judge with the `detoxify` package."""

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
    """Load the lab's judge in float32.

    Args:
        device: Device of the model.
        folder: Folder of the judge's assets.

    Returns:
        A `detoxify.Detoxify`.

    Raises:
        UserError: The assets are missing.
    """
    path = folder / "judge.ckpt"
    if not path.is_file():
        raise UserError(
            f"the lab's judge is not at {path}",
            "create it with `python -m wpn_bench.lab_training.build --comments FILE --only judge`",
        )
    from wpn_bench.harmless.judges.detoxify import load_checkpoint

    judge: Detoxify = load_checkpoint(path, device)
    return judge
