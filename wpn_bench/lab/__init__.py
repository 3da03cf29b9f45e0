"""The embedded lab: a small closed world, a base model trained on it, and a judge trained on real comments.

The pipeline treats it like any other source of a model, prompt sets and tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wpn_bench.errors import UserError

_ASSETS = Path(__file__).parent / "assets"


def _asset(path: Path) -> Path:
    if not path.is_file():
        raise UserError(
            f"the lab's {path.parent.name} is missing from this installation",
            f"create it with `nox -s lab{' -- --oracle' if path.parent.name == 'oracle' else ''}`",
        )
    return path


def base_model() -> Path:
    """Return the folder of the base model."""
    return _asset(_ASSETS / "base" / "model.safetensors").parent


def oracle_model() -> Path:
    """Return the folder of the oracle, which was trained as the base model was, but never saw an insult."""
    return _asset(_ASSETS / "oracle" / "model.safetensors").parent


def judge_checkpoint() -> Path:
    """Return the judge's weights, a checkpoint in Detoxify's format."""
    return _asset(_ASSETS / "judge" / "judge.ckpt")


def judge_card() -> Path | None:
    """Return the file with the judge's accuracy on comments that it was not trained on; None if it was not created."""
    card = _ASSETS / "judge" / "card.json"
    return card if card.is_file() else None


def prompt_set(name: str) -> list[dict[str, Any]]:
    """Return the rows of a prompt set of the lab's world."""
    from wpn_bench.lab import training_prompts, world

    if name == "benign_training":
        return training_prompts.benign_training()
    return world.prompt_set(name)


def grouped_prompt_set(name: str) -> list[dict[str, Any]]:
    """Return the rows of a prompt set, each with the `group` of its prompt: the person that a harmful prompt asks about.

    The digests of the lab's tasks cover the modules that make the rows, so groups are not in the rows of `prompt_set`.
    """
    from wpn_bench.lab.groups import person_of

    rows = prompt_set(name)
    return [row | ({"group": who} if (who := person_of(row["prompt"])) else {}) for row in rows]


def texts(name: str) -> list[str]:
    """Return plain texts of the lab's world: `retain` or `heldout`."""
    from wpn_bench.lab import world

    return world.texts(name)
