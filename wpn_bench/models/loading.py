"""Load models, cache the most recently used ones in memory, and choose the device.

A model is identified by the SHA-256 of its weights, configuration and tokenizer files, and not by its name. If the
files in a folder change, it is another model.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent, device_memory
from wpn_bench.core.files import Signature
from wpn_bench.core.machine import USABLE_FRACTION, free_under_ulimit
from wpn_bench.core.model_files import WEIGHT_SUFFIXES, model_signature
from wpn_bench.errors import UserError
from wpn_bench.models.files import not_causal
from wpn_bench.models.locate import has_safetensors
from wpn_bench.models.sizes import weights_bytes, working_memory
from wpn_bench.models.tokenizer import load_tokenizer, silence_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARD = "5GB"  # maximum size of a file of weights, as usual on the hub


def pick_device(asked: str = "auto") -> str:
    """Return the device to compute on. `auto` is CUDA if available, else the CPU.

    Raises:
        UserError: There is no such device.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as e:
        raise UserError(f"unknown device {asked!r}", "use --device auto, cpu or cuda") from e
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"the device {asked!r} cannot run models", "use --device auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is available", "use --device cpu (or auto)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"there is no device {asked!r}",
            f"this machine has {torch.cuda.device_count()} CUDA devices, numbered from cuda:0",
        )
    return asked


# Two models are kept, because a run often uses the base model and the evaluated model in turn.
_LOADED: OrderedDict[tuple[str, Signature, str, str, str], tuple[Any, Any]] = OrderedDict()
KEEP = 2
# Functions that free memory of GPUs. Backends that hold it outside of this cache add theirs.
OTHER_HOLDERS: list[Callable[[], None]] = []


def make_room(need: int, device: str, keep: int = KEEP) -> None:
    """Remove cached models from memory, the least recently used first, until enough memory is free.

    Memory of a GPU that other backends hold is always freed.

    Args:
        need: Memory needed, in bytes.
        device: Device on which it is needed.
        keep: Maximum number of models that stay cached.
    """
    if device != "cpu":
        for free in OTHER_HOLDERS:
            free()
    while len(_LOADED) > keep:
        _LOADED.popitem(last=False)
    while _LOADED and need > USABLE_FRACTION * device_memory.free_memory(device.partition(":")[0]):
        _LOADED.popitem(last=False)
        device_memory.release()


def load(
    path: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode and its tokenizer. Other callers share the model, so do not train it.

    The two most recently used models stay in memory if both fit, and otherwise only the last one.

    Args:
        path: Folder of the model.
        device: Device that runs the model.
        dtype: Data type of the weights, such as "float32".
        offload: See `load_fresh`.

    Returns:
        The model and its tokenizer.

    Raises:
        UserError: See `load_fresh`.
    """
    # The key contains the signature, because a folder with changed files is another model.
    key = (str(path), model_signature(path), device, dtype, offload)
    if key in _LOADED:
        _LOADED.move_to_end(key)
        return _LOADED[key]
    make_room(_need(path, dtype), device, KEEP - 1)
    _LOADED[key] = (load_fresh(path, device, dtype, offload).eval(), load_tokenizer(path))
    return _LOADED[key]


def let_go() -> None:
    """Remove all cached models from memory."""
    import torch

    _LOADED.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def load_fresh(path: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none") -> PreTrainedModel:
    """Load a copy of a model that no other caller shares.

    Args:
        path: Folder of the model.
        device: Device that runs the model.
        dtype: Data type of the weights, such as "float32".
        offload: With "cpu", weights that do not fit on an accelerator are kept in main memory. With "disk", weights
            that fit in neither are read from their files in every pass. Results are the same, but slower. An offloaded
            model cannot be trained. `engine.placement.device_of` returns the device of its inputs.

    Returns:
        The model.

    Raises:
        UserError: The model does not fit into memory, lacks weights, or is not a causal language model.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    silence_transformers()
    placement = _placement(path, device, dtype, offload)
    if placement:
        # Offloaded safetensors are read from the folder of the model. Pickled weights are copied to this new folder.
        placement["offload_folder"] = tempfile.mkdtemp(prefix="wpn-bench-offload-")
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), output_loading_info=True, **placement, **reading(path)
        )
    except (ValueError, OSError, KeyError, RuntimeError, MemoryError, SafetensorError, UnpicklingError) as e:
        # "Cannot allocate memory" means that a file could not be mapped into memory.
        if device_memory.ran_out_of_memory(e) or "Cannot allocate memory" in str(e):
            raise UserError(
                f"{path} does not fit into memory in {dtype}",
                "use --dtype bfloat16, --offload disk or a smaller model",
            ) from e
        raise not_causal(path, e) from e
    # transformers initialises missing weights at random and only prints a warning. This would be another model.
    lacking = sorted(set(loading["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} of the model's weights (first: {lacking[0]})", "fetch or save the model again"
        )
    if beyond := _layers_beyond(model, loading["unexpected_keys"]):
        raise UserError(
            f"{path} has weights of more layers than its config.json says (first: {beyond[0]})",
            "give the config.json that belongs to these weights",
        )
    if not placement:
        return model.to(device)
    weakref.finalize(model, shutil.rmtree, placement["offload_folder"], ignore_errors=True)
    if offload == "cpu" and "disk" in model.hf_device_map.values():
        raise UserError(f"the model does not fit into the memory of {device} and the main memory", "use --offload disk")
    return model


def _layers_beyond(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Return the unexpected weights that continue the model's own list of layers. transformers leaves them out silently.

    Weights of other parts, such as a vision tower, are left out on purpose.
    """
    import torch

    lists = {name: len(part) for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)}
    found = []
    for name in sorted(unexpected):
        for match in re.finditer(r"\.(\d+)\.", name):
            if int(match[1]) >= lists.get(name[: match.start()], 1 << 30):
                found.append(name)
    return found


def _need(path: Path, dtype: str) -> int:
    """Return the number of bytes that a model needs in memory, or 0 if its files cannot be read."""
    from transformers import AutoConfig

    try:
        return weights_bytes(path, dtype) + working_memory(AutoConfig.from_pretrained(path), dtype)
    except Exception:  # loading will report the damaged files
        return 0


def _placement(path: Path, device: str, dtype: str, offload: str) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` distributes the weights over devices and disk.

    There are none if all weights fit on `device`, or for a quantised model, because torchao places its weights.
    """
    from transformers import AutoConfig

    if offload == "none":
        return {}
    config = AutoConfig.from_pretrained(path)
    need, working = weights_bytes(path, dtype), working_memory(config, dtype)
    kind = device.partition(":")[0]
    here = int(USABLE_FRACTION * device_memory.free_memory(kind)) - working
    main = here if kind == "cpu" else int(USABLE_FRACTION * device_memory.free_memory("cpu"))
    files = sum(file.stat().st_size for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    main = int(min(main, USABLE_FRACTION * (free_under_ulimit() - files) - working))
    if need <= (main if kind == "cpu" else here) or getattr(config, "quantization_config", None):
        return {}
    most: dict[int | str, int] = {"cpu": max(0, main)}
    if kind != "cpu":
        most = {int(device.partition(":")[2] or 0): max(0, here), **most}
    return {"device_map": "auto", "max_memory": most}


def reading(path: Path) -> dict[str, Any]:
    """Return the arguments with which `from_pretrained` safely reads the weights in a folder.

    The model's own code runs only if the user permitted it. Safetensors are preferred, because the digest covers them.
    From a pickle, only tensors and plain values are read.
    """
    safe = has_safetensors(p.name for p in path.iterdir()) if path.is_dir() else None
    return {"trust_remote_code": consent.code_allowed(), "use_safetensors": safe, "weights_only": True}
