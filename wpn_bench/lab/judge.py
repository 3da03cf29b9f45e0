"""The lab's judge, loaded by the `detoxify` package itself from the shipped checkpoint."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from detoxify import Detoxify

__all__ = ["JUDGE_FOLDER", "load_judge"]

JUDGE_FOLDER = Path(__file__).parent / "assets" / "judge"


def load_judge(device: str = "cpu", folder: Path = JUDGE_FOLDER) -> Detoxify:
    """A `detoxify.Detoxify` with the lab's weights, in float32.

    Detoxify reads its configuration from the `model_type` that the checkpoint names, which must be a path for a local
    model; a shipped file cannot know its path, so it is set in memory. Raises UserError where the assets are missing.
    """
    path = folder / "judge.ckpt"
    if not path.is_file():
        raise UserError(
            f"the lab's judge is not at {path}",
            "make it with `python -m wpn_bench.lab.build --comments FILE --only judge`",
        )
    import torch
    from detoxify import Detoxify

    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["config"]["arch"]["args"]["model_type"] = str(folder)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    buffer.seek(0)
    judge = Detoxify(checkpoint=buffer, device=device, huggingface_config_path=str(folder))
    judge.model.float().eval()
    return judge
