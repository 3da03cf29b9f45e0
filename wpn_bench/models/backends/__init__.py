"""A backend is one way to run or reach a model, such as in this process or at a remote endpoint.

To add a backend, write one file and add one line below, or register an entry point in the group `wpn_bench.backends` in
another package.
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
BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {LOCAL: "wpn_bench.engine.local_backend:LocalBackend", "openai": "wpn_bench.models.backends.openai:OpenAIBackend"},
)


def open_backend(folder: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none") -> Backend:
    """Open the model in a folder for inference.

    If the folder contains a `backend.json`, its field `backend` names the backend. Otherwise the folder contains a
    local model.

    Args:
        folder: Folder of the model, or of the settings of a backend.
        device: Device of a local model.
        dtype: Data type of a local model's weights.
        offload: Where to keep weights of a local model that do not fit on the device: "none", "cpu" or "disk".

    Returns:
        The backend.

    Raises:
        UserError: The settings name no known backend.
    """
    name = LOCAL
    if (folder / SETTINGS).is_file():
        settings = load_json(folder / SETTINGS, "write a JSON object with the field `backend`")
        if not isinstance(settings, dict) or not isinstance(settings.get("backend"), str):
            raise UserError(f"{folder / SETTINGS} names no backend", f"known: {', '.join(BACKENDS)}")
        name = settings["backend"]
    return BACKENDS.get(name).open(folder, device, dtype, offload)


def scoring_tokenizer(backend: Backend) -> PreTrainedTokenizerBase:
    """Return the tokenizer for `loglikelihoods`. Raises `JobFailed` if the model gives no log-likelihoods."""
    if backend.tokenizer is None:
        raise JobFailed("this model gives no log-likelihoods, so it cannot score text")
    return backend.tokenizer
