"""Models: find one by hub id or folder, know it by its digest, load it.

A model is addressed by the SHA-256 of its weights, configuration and tokenizer files, never by its name: a folder
whose files changed is another model.
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.errors import UserError
from wpn_bench.store import digest_file, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAB = "lab"
_WEIGHTS = (".safetensors", ".bin")
_PARTS = (".json", ".model", ".txt", ".jinja", *_WEIGHTS)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    """A model that lies on this machine: what was asked for, where it is, which it is."""

    asked: str
    path: Path
    digest: str
    revision: str | None

    @property
    def is_lab(self) -> bool:
        return self.asked == LAB


def resolve(asked: str, revision: str | None = None) -> ModelRef:
    """Find `asked` (`lab`, a folder, or a hub id) and fetch it if need be.

    Raises `UserError` for a folder without a model, an unknown id, and no network with nothing cached.
    """
    if asked == LAB:
        from wpn_bench import lab

        folder = lab.base_model()
        return ModelRef(asked, folder, _digest(folder), None)
    folder = Path(asked).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return ModelRef(asked, folder, _digest(folder), None)
    if folder.exists():
        raise UserError(f"{asked} is a file", "give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(asked) or asked.startswith((".", "/")):
        raise UserError(f"no model folder at {asked}", "give an existing folder or a hub id such as facebook/opt-125m")
    folder, sha = _download(asked, revision)
    _check_folder(folder)
    return ModelRef(asked, folder, _digest(folder), sha)


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"{folder} holds no model (no config.json)", "give a folder written by save_pretrained, or a hub id"
        )
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{config} is not valid JSON ({e})", "fetch or save the model again") from e
    if not isinstance(settings, dict):
        raise UserError(f"{config} is not a JSON object", "fetch or save the model again")
    if not any(p.suffix in _WEIGHTS for p in folder.iterdir()):
        raise UserError(f"{folder} holds no weights (no *.safetensors or *.bin)", "fetch or save the model again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise UserError(
            f"{folder} holds no tokenizer", "save it beside the weights with tokenizer.save_pretrained(folder)"
        )


def _digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _PARTS)
    safe = any(p.suffix == ".safetensors" for p in files)
    # Where safetensors are present, transformers reads them and not the pickles beside them.
    return digest_of({p.name: digest_file(p) for p in files if not (safe and p.suffix == ".bin")})


def _download(asked: str, revision: str | None) -> tuple[Path, str | None]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from wpn_bench.hub import is_of_the_line

    ignore = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.md", "onnx/*"]
    try:
        try:
            files = [s.rfilename for s in HfApi().model_info(asked, revision=revision).siblings or []]
            if any(f.endswith(".safetensors") for f in files):
                ignore.append("*.bin")
        except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError):
            raise
        except Exception as e:
            if not is_of_the_line(e):
                raise
            # No network: what is cached may still do.
        folder = Path(snapshot_download(asked, revision=revision, ignore_patterns=ignore))
    except GatedRepoError as e:
        raise UserError(
            f"access to {asked} is restricted", "ask for access on its page, then set HF_TOKEN and try again"
        ) from e
    except RevisionNotFoundError as e:
        raise UserError(
            f"{asked} has no revision {revision!r}", "leave --revision out or name a branch or commit"
        ) from e
    except RepositoryNotFoundError as e:
        raise UserError(
            f"unknown model {asked!r}: no such folder here and no such repository on the hub",
            "check the spelling (owner/name), or give a folder; `wpn-bench full` alone runs the embedded lab",
        ) from e
    except LocalEntryNotFoundError as e:
        raise UserError(
            f"{asked} is not in the local cache and the hub cannot be reached",
            "connect once (or set HF_ENDPOINT / HF_HOME), or give a folder; `wpn-bench full` alone needs no network",
        ) from e
    except Exception as e:
        if not is_of_the_line(e):
            raise
        raise UserError(
            f"{asked} could not be fetched ({' '.join(str(e).split())[:200]})", "try again, or give a folder"
        ) from e
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def pick_device(asked: str = "auto") -> str:
    """`auto` is CUDA where there is one, else the CPU."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(asked)
    except RuntimeError as e:
        raise UserError(f"unknown device {asked!r}", "use --device auto, cpu or cuda") from e
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no CUDA device is available", "use --device cpu (or auto)")
    return asked


# The base model and the one at hand: what a run needs at the same time.
_LOADED: OrderedDict[tuple[str, str, str], tuple[Any, Any]] = OrderedDict()
KEEP = 2


def load(path: Path, device: str = "cpu", dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode and its tokenizer; the two used last stay in memory. Do not train what it returns."""
    key = (str(path), device, dtype)
    if key in _LOADED:
        _LOADED.move_to_end(key)
        return _LOADED[key]
    while len(_LOADED) >= KEEP:
        _LOADED.popitem(last=False)
    _LOADED[key] = (load_fresh(path, device, dtype).eval(), load_tokenizer(path))
    return _LOADED[key]


def load_fresh(path: Path, device: str = "cpu", dtype: str = "float32") -> PreTrainedModel:
    """A copy of the model that nobody else holds."""
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _quiet()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as e:
        raise UserError(
            f"{path} cannot be loaded as a causal language model ({' '.join(str(e).split())[:200]})",
            "give a model that AutoModelForCausalLM reads (OPT, GPT-Neo, GPT-2, Llama, ...)",
        ) from e
    # transformers fills what a file lacks with random numbers and only warns: that would be another model.
    lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} of the model's weights (first: {lacking[0]})", "fetch or save the model again"
        )
    return model.to(device)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token (end-of-text where it has none of its own)."""
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as e:  # the tokenizers library raises bare exceptions
        raise UserError(
            f"the tokenizer in {path} cannot be read ({' '.join(str(e).split())[:160]})",
            "save it again with tokenizer.save_pretrained(folder)",
        ) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(model: PreTrainedModel, default: int = 2048) -> int:
    """How many tokens the model can attend to."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = getattr(model.config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return default


def context_length_of(path: Path) -> int:
    """`context_length` without loading weights."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def width_of(path: Path) -> int:
    """The hidden size, without loading weights; `UserError` where the configuration does not say it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path).get_text_config()
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int) or width < 1:
        raise UserError(
            f"{path.name}/config.json has no hidden size, so learning rates cannot be tuned", "leave --tune out"
        )
    return width


def _quiet() -> None:
    # One bar of our own instead of a bar a weight file; errors still show.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
