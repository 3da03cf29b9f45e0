"""Backends: the ways to reach a model. A new one is one file and one line below, or an entry point of the group
`wpn_bench.backends` in a package of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.core.json_files import load_json
from wpn_bench.core.registry import Registry
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BACKENDS", "Backend", "Decoding", "Response", "TokenPair", "open_backend", "scoring_tokenizer"]

SETTINGS = "backend.json"
LOCAL = "local"
BACKENDS: Registry[type[Backend]] = Registry("backend", {LOCAL: "wpn_bench.engine.local_backend:LocalBackend"})


def open_backend(folder: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none") -> Backend:
    """The model in a folder, ready to be asked.

    A folder with a `backend.json` is reached by the backend that it names as `backend`. Any other holds a local model.

    Args:
        folder: Holds the model, or the settings with which it is reached.
        device: Where a local model computes.
        dtype: Type of a local model's weights.
        offload: Where weights of a local model wait that do not fit on the device: "none", "cpu" or "disk".

    Raises:
        UserError: The folder names no known backend.
    """
    name = LOCAL
    if (folder / SETTINGS).is_file():
        settings = load_json(folder / SETTINGS, "write a JSON object with the field `backend`")
        if not isinstance(settings, dict) or not isinstance(settings.get("backend"), str):
            raise UserError(f"{folder / SETTINGS} names no backend", f"known: {', '.join(BACKENDS)}")
        name = settings["backend"]
    return BACKENDS.get(name).open(folder, device, dtype, offload)


def scoring_tokenizer(backend: Backend) -> PreTrainedTokenizerBase:
    """The tokenizer for `loglikelihoods`. Raises `JobFailed` for a model that gives no log-likelihoods."""
    if backend.tokenizer is None:
        raise JobFailed("this model gives no log-likelihoods, so text cannot be scored by it")
    return backend.tokenizer
