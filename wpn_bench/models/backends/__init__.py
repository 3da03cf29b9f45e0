"""A backend is one way to run or reach a model, such as in this process or at a remote endpoint.

To add a backend, write one file and add one line below, or register an entry point in the group `wpn_bench.backends` in
another package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core.json_files import load_json
from wpn_bench.core.registry import Registry
from wpn_bench.errors import JobFailed, UserError
from wpn_bench.models.backends.base import Backend, Decoding, Response, TokenPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BACKENDS",
    "Backend",
    "Decoding",
    "Response",
    "TokenPair",
    "identity_of",
    "open_backend",
    "scoring_tokenizer",
]

SETTINGS = "backend.json"
LOCAL = "local"
BACKENDS: Registry[type[Backend]] = Registry(
    "backend",
    {
        LOCAL: "wpn_bench.engine.local_backend:LocalBackend",
        "openai": "wpn_bench.models.backends.openai:OpenAIBackend",
        "vllm": "wpn_bench.engine.vllm_backend:VLLMBackend",
    },
)


def identity_of(name: str, device: str, offload: str) -> dict[str, Any]:
    """Return what identifies a backend of local models, as a parameter of jobs and as an entry of the manifest.

    Args:
        name: Name of the backend.
        device: Device of the models.
        offload: Where to keep weights that do not fit on the device.

    Returns:
        The `identity()` of the backend under the key `backend`; empty for this process.

    Raises:
        UserError: The backend is not installed, or cannot hold models there.
    """
    if name == LOCAL:
        return {}
    kind = BACKENDS.get(name)
    kind.check_placement(device, offload)
    return {"backend": kind.identity()}


def open_backend(
    folder: Path,
    device: str = "cpu",
    dtype: str = "float32",
    offload: str = "none",
    identity: Mapping[str, Any] | None = None,
) -> Backend:
    """Open the model in a folder for inference.

    If the folder contains a `backend.json`, its field `backend` names the backend. Otherwise the folder contains a
    local model, which runs in the backend that `identity` names, or in this process.

    Args:
        folder: Folder of the model, or of the settings of a backend.
        device: Device of a local model.
        dtype: Data type of a local model's weights.
        offload: Where to keep weights of a local model that do not fit on the device: "none", "cpu" or "disk".
        identity: The backend of a local model, as its `identity()` was when the job was planned; None for this process.

    Returns:
        The backend.

    Raises:
        UserError: The settings name no known backend, or the backend has another version here.
    """
    name = LOCAL
    if (folder / SETTINGS).is_file():
        settings = load_json(folder / SETTINGS, "write a JSON object with the field `backend`")
        if not isinstance(settings, dict) or not isinstance(settings.get("backend"), str):
            raise UserError(f"{folder / SETTINGS} names no backend", f"known: {', '.join(BACKENDS)}")
        name = settings["backend"]
    elif identity:
        name = identity["name"]
        if (here := BACKENDS.get(name).identity()) != identity:
            raise UserError(
                f"the job was planned for {_shown(identity)}, and here is {_shown(here)}",
                "repeat the command, and install the same packages on every machine",
            )
    return BACKENDS.get(name).open(folder, device, dtype, offload)


def _shown(identity: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in identity.items())


def scoring_tokenizer(backend: Backend) -> PreTrainedTokenizerBase:
    """Return the tokenizer for `loglikelihoods`. Raises `JobFailed` if the model gives no log-likelihoods."""
    if backend.tokenizer is None:
        raise JobFailed("this model gives no log-likelihoods, so it cannot score text")
    return backend.tokenizer
