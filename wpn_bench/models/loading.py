"""Models: find one by hub id or folder, know it by its digest, load it.

A model is addressed by the SHA-256 of its weights, configuration and tokenizer files, never by its name: a folder
whose files changed is another model.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent, device_memory
from wpn_bench.core.files import Signature, folder_signature
from wpn_bench.core.machine import USABLE_FRACTION, free_under_ulimit
from wpn_bench.errors import UserError
from wpn_bench.models import model_files
from wpn_bench.models.locate import _WEIGHTS, _is_safe
from wpn_bench.models.sizes import weights_bytes, working_memory
from wpn_bench.models.tokenizer import _quiet, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARD = "5GB"  # weights a file holds at most, as usual on the hub


def pick_device(asked: str = "auto") -> str:
    """`auto` is CUDA where there is one, else the CPU."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as e:
        raise UserError(f"unknown device {asked!r}", "use --device auto, cpu or cuda") from e
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"nothing can be computed on device {asked!r}", "use --device auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available", "use --device cpu (or auto)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {asked!r}", f"there are {torch.cuda.device_count()}, from cuda:0 on")
    return asked


# The base model and the one at hand: what a run needs at the same time.
_LOADED: OrderedDict[tuple[str, Signature, str, str, str], tuple[Any, Any]] = OrderedDict()
KEEP = 2
OFFLOADS = ("none", "cpu", "disk")


def make_room(need: int, device: str, keep: int = KEEP) -> None:
    """Let go of the models that were used longest ago until no more than `keep` are loaded and `need` bytes are free."""

    while len(_LOADED) > keep:
        _LOADED.popitem(last=False)
    while _LOADED and need > USABLE_FRACTION * device_memory.free_memory(device.partition(":")[0]):
        _LOADED.popitem(last=False)
        device_memory.release()


def load(
    path: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode and its tokenizer. The two used last stay in memory if both fit, else the last. Do not
    train what it returns."""
    key = (
        str(path),
        folder_signature(path),
        device,
        dtype,
        offload,
    )  # other weights in the same place are another model
    if key in _LOADED:
        _LOADED.move_to_end(key)
        return _LOADED[key]
    make_room(_need(path, dtype), device, KEEP - 1)
    _LOADED[key] = (load_fresh(path, device, dtype, offload).eval(), load_tokenizer(path))
    return _LOADED[key]


def let_go() -> None:
    """Forget the models that stay in memory, for somebody else needs it."""
    import torch

    _LOADED.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def load_fresh(path: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none") -> PreTrainedModel:
    """A copy of the model that nobody else holds.

    With `offload` "cpu", weights that do not fit on an accelerator wait in main memory, with "disk" those that fit
    nowhere are read from their files, each whenever a pass needs it: the same numbers, later. Such a model is for
    measuring alone, and `engine.placement.device_of` says where its inputs go.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    _quiet()
    place = _places(path, device, dtype, offload)
    if place:
        # Safetensors stay where they are; weights that are pickled are written there once more.
        place["offload_folder"] = tempfile.mkdtemp(prefix="wpn-bench-offload-")
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True, **place, **reading(path)
        )
    except (ValueError, OSError, KeyError, RuntimeError, MemoryError, SafetensorError, UnpicklingError) as e:
        if device_memory.ran_out_of_memory(e) or "Cannot allocate memory" in str(
            e
        ):  # the latter where a file cannot be mapped
            raise UserError(
                f"{path} does not fit into memory in {dtype}",
                "take --dtype bfloat16, --offload disk or a smaller model",
            ) from e
        raise model_files.not_causal(path, e) from e
    # transformers fills what a file lacks with random numbers and only warns: that would be another model.
    lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} of the model's weights (first: {lacking[0]})", "fetch or save the model again"
        )
    if not place:
        return model.to(device)
    weakref.finalize(model, shutil.rmtree, place["offload_folder"], ignore_errors=True)
    if offload == "cpu" and "disk" in model.hf_device_map.values():
        raise UserError(f"the model does not fit into the memory of {device} and the machine", "use --offload disk")
    return model


def _need(path: Path, dtype: str) -> int:
    from transformers import AutoConfig

    try:
        return weights_bytes(path, dtype) + working_memory(AutoConfig.from_pretrained(path), dtype)
    except Exception:  # whatever is wrong with the files, loading them says it better
        return 0


def _places(path: Path, device: str, dtype: str, offload: str) -> dict[str, Any]:
    """How `from_pretrained` is told to spread the weights; nothing where all fit on `device`, or are rounded, which
    those who round (torchao) hold as they like."""
    from transformers import AutoConfig

    if offload == "none":
        return {}
    config = AutoConfig.from_pretrained(path)
    need, working = weights_bytes(path, dtype), working_memory(config, dtype)
    kind = device.partition(":")[0]
    here = int(USABLE_FRACTION * device_memory.free_memory(kind)) - working
    main = here if kind == "cpu" else int(USABLE_FRACTION * device_memory.free_memory("cpu"))
    files = sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHTS)
    main = int(min(main, USABLE_FRACTION * (free_under_ulimit() - files) - working))
    if need <= (main if kind == "cpu" else here) or getattr(config, "quantization_config", None):
        return {}
    most: dict[int | str, int] = {"cpu": max(0, main)}
    if kind != "cpu":
        most = {int(device.partition(":")[2] or 0): max(0, here), **most}
    return {"device_map": "auto", "max_memory": most}


def reading(path: Path) -> dict[str, Any]:
    """How transformers is to read the weights in a folder: code only by consent, safetensors where the digest is of them,
    of a pickle nothing but tensors and plain values."""
    safe = _is_safe(p.name for p in path.iterdir()) if path.is_dir() else None
    return {"trust_remote_code": consent.code_allowed(), "use_safetensors": safe, "weights_only": True}
