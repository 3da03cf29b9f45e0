"""The embedded lab: a small closed world, a base model trained on it, and a judge trained on real comments.

Nothing here is special to the pipeline: the lab is one more provider of a model, prompt sets and tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

_ASSETS = Path(__file__).parent / "assets"


def _made(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"the lab's {path.parent.name} is missing from this installation", "make it with `nox -s lab`")
    return path


def base_model() -> Path:
    """The folder of the base model."""
    return _made(_ASSETS / "base" / "model.safetensors").parent


def judge_checkpoint() -> Path:
    """The judge's weights, a checkpoint in Detoxify's format."""
    return _made(_ASSETS / "judge" / "judge.ckpt")


def judge_card() -> Path | None:
    """What the judge is worth on comments that it was not trained on; None where the card was not made."""
    card = _ASSETS / "judge" / "card.json"
    return card if card.is_file() else None


def prompt_set(name: str) -> list[dict[str, Any]]:
    """Rows of one of the world's prompt sets."""
    from wpn_bench.lab import world

    return world.prompt_set(name)


def texts(name: str) -> list[str]:
    """Plain texts of the world: `retain` or `heldout`."""
    from wpn_bench.lab import world

    return world.texts(name)
