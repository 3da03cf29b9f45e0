"""Check the files of a model without building the model. This takes as long as reading the files.

Without these checks, a damaged shard or the tokenizer of another model would cause a misleading error hours later.
transformers builds the model that config.json describes, and a token id without an embedding fails inside a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent
from wpn_bench.core.json_files import load_json
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


INDEX = "model.safetensors.index.json"
HINT = "fetch or save the model again"
# What begins all names of weights that were saved with a wrapper around the model -> (the wrapper, the way to save them without).
_WRAPPERS = {
    "module.": ("DistributedDataParallel or DataParallel", "model.module.save_pretrained(folder)"),
    "_orig_mod.": ("torch.compile", "model._orig_mod.save_pretrained(folder)"),
    "base_model.model.": ("an adapter of peft", "model.merge_and_unload().save_pretrained(folder)"),
}


def check_files(folder: Path) -> None:
    """Raise `UserError` if config.json, weights and tokenizer do not form one complete model.

    Weights in safetensors are also checked for NaN and infinity. Pickled weights are only checked to contain tensors
    and no code.
    """
    config = read_config(folder)
    shards = _shards(folder)
    if shards:
        shapes = _read(shards)
        _check_names(folder, shapes)
        _check_shapes(folder, config.get_text_config(), shapes)
    else:
        _check_pickles(folder)
    _check_tokenizer(folder, config.get_text_config())


def read_config(folder: Path) -> PreTrainedConfig:
    """Read config.json with transformers. The model's own code runs only if the user permitted it.

    Raises:
        UserError: transformers cannot read the file, for instance because it does not know the architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=consent.code_allowed())
    except Exception as e:  # the type of the exception depends on the architecture
        raise UserError(
            f"transformers cannot read {folder}/config.json ({' '.join(str(e).split())[:160]})",
            "give a model with an architecture that it supports (OPT, GPT-Neo, GPT-2, Llama, ...)",
        ) from e


def check_causal(folder: Path) -> None:
    """Raise `UserError` if the architecture is not a causal language model or has bidirectional attention."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = read_config(folder)
    if getattr(config, "auto_map", None) and consent.code_allowed():
        return  # the class of the model is in the model's own code
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise not_causal(folder, f"model_type {config.model_type!r}")
    # Masked language models also have a causal class, but its attention is bidirectional unless is_decoder is set.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise not_causal(folder, f"{config.model_type!r} with is_decoder false attends in both directions")


# Architectures in transformers with which wpn-bench would give wrong results, and the reason.
_UNSUPPORTED = {
    "recurrent_gemma": "it keeps its state between calls, so an answer would depend on earlier prompts",
}


def check_usable(folder: Path, *, trained: bool) -> None:
    """Check that this installation can run a model, and train it if necessary.

    Args:
        folder: Folder of the model.
        trained: Whether the run trains the model.

    Raises:
        UserError: The weights are quantised and are to be trained, the library that reads them is missing or does not
            work on this machine, or the architecture gives wrong results.
    """
    from transformers.quantizers import AutoHfQuantizer, AutoQuantizationConfig

    config = read_settings(folder)
    if why := _UNSUPPORTED.get(str(config.get("model_type"))):
        raise UserError(
            f"a {config['model_type']} model is not supported: {why}", "use a model with another architecture"
        )
    text = config.get("text_config")
    settings = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    if not isinstance(settings, dict):
        return
    method = settings.get("quant_method") or "an unnamed method"
    if trained:
        raise UserError(
            f"the weights of this model are quantised ({method}), so they cannot be trained",
            "give the original model or a dequantised copy (model.dequantize(), save_pretrained); a quantised model"
            " can only be measured, and only if its library is installed",
        )
    try:
        # Pass a copy of the settings, because some quantisers change them.
        AutoHfQuantizer.from_config(
            AutoQuantizationConfig.from_dict(dict(settings)), pre_quantized=True
        ).validate_environment(device_map=None)
    except Exception as e:  # each quantiser raises its own exceptions
        said = " ".join(str(e).split())[:160]
        raise UserError(
            f"the weights of this model are quantised ({method}), and this installation cannot read them ({said})",
            "install the library that the message names, or give the original model",
        ) from e


def not_causal(folder: Path, why: object) -> UserError:
    """Return the error for a model that is not a causal language model.

    Args:
        folder: Folder of the model.
        why: An exception or a reason in words.

    Returns:
        The error, which the caller raises.
    """
    return UserError(
        f"{folder} cannot be loaded as a causal language model ({' '.join(str(why).split())[:200]})",
        "give a model that AutoModelForCausalLM reads (OPT, GPT-Neo, GPT-2, Llama, ...)",
    )


def _shards(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads; empty if the weights are pickled."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    placed = load_json(index, HINT)
    weight_map = placed.get("weight_map") if isinstance(placed, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is not an index of weights, because it has no weight_map", HINT)
    names = dict.fromkeys(weight_map.values())
    for name in names:
        # A file in another folder would not be covered by the digest of the model.
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names a file outside of its folder ({str(name)[:60]})", HINT)
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, one of the {len(names)} files of its weights", HINT)
    return [folder / name for name in names]


def _read(shards: Iterable[Path]) -> dict[str, list[int]]:
    """Return the shape of each weight by name.

    Raises:
        UserError: A file is truncated or damaged, or a weight is NaN or infinite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in shards:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    weight = opened.get_tensor(name)
                    shapes[name] = list(weight.shape)
                    numbers = weight.float() if weight.is_floating_point() and weight.element_size() == 1 else weight
                    if not torch.isfinite(numbers).all():
                        raise UserError(f"{file} contains NaN or infinite weights (first: {name})", HINT)
        except (SafetensorError, OSError, ValueError, RuntimeError) as e:
            said = " ".join(str(e).split())[:120]
            raise UserError(
                f"the weights {file} cannot be read; the file is truncated or damaged ({said})", HINT
            ) from e
    return shapes


def _check_pickles(folder: Path) -> None:
    """Raise `UserError` for a pickle that contains more than tensors and plain values, because it could run code."""
    import zipfile

    import torch

    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as e:  # the types that the unpickler raises differ between versions of torch
            raise UserError(
                f"the weights {file} are damaged, or contain more than tensors ({' '.join(str(e).split())[:80]})",
                "give the model as safetensors (save_pretrained)",
            ) from e
        if isinstance(weights, dict) and weights:
            _check_names(folder, map(str, weights))


def _check_names(folder: Path, names: Iterable[str]) -> None:
    """Raise `UserError` for weights that were saved with a wrapper around the model, which transformers would not find."""
    names = list(names)
    for start, (wrapper, way) in _WRAPPERS.items():
        if all(name.startswith(start) for name in names):
            raise UserError(
                f"the names of the weights in {folder} begin with {start!r}: the model was saved inside {wrapper}",
                f"save the model itself: {way}",
            )


def _check_shapes(folder: Path, config: PreTrainedConfig, shapes: Mapping[str, list[int]]) -> None:
    """Raise `UserError` if config.json does not match these weights.

    Without this check, transformers would build the model that config.json describes, however large, and then fail to
    load the weights.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(shapes):
        raise UserError(
            f"{folder}/config.json describes {layers} layers, but the weights are only {len(shapes)} tensors", HINT
        )
    sizes = {size for shape in shapes.values() for size in shape}
    for field in ("vocab_size", "hidden_size"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value not in sizes:
            raise UserError(f"{folder}/config.json sets {field} to {value}, but no weight has this size", HINT)


def _check_tokenizer(folder: Path, config: PreTrainedConfig) -> None:
    """Raise `UserError` if the tokenizer gives no tokens for a text, or a token without an embedding."""
    from wpn_bench.models.tokenizer import check_embeddings, read_tokenizer

    tokenizer = read_tokenizer(folder)
    if not (ids := tokenizer("One, two.")["input_ids"]) or None in ids:
        raise UserError(
            f"the tokenizer in {folder} gives no tokens for a text",
            "save it again with tokenizer.save_pretrained(folder)",
        )
    check_embeddings(tokenizer, folder, getattr(config, "vocab_size", None))


def read_settings(folder: Path) -> dict[str, Any]:
    """Read config.json as plain values. Raises `UserError` if it is missing or not valid."""
    config = folder / "config.json"
    if not config.is_file():
        inner = sorted((p.name for p in folder.glob("checkpoint-*") if p.is_dir()), key=lambda name: (len(name), name))
        if inner:
            raise UserError(
                f"{folder} contains no model, but checkpoints of a training ({', '.join(inner)[:120]})",
                f"give one of them, such as {folder / inner[-1]}",
            )
        raise UserError(
            f"{folder} contains no model (no config.json)", "give a folder written by save_pretrained, or a hub id"
        )
    settings = load_json(config, HINT)
    if not isinstance(settings, dict):
        raise UserError(f"{config} is not a JSON object", HINT)
    return settings
