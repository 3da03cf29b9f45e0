"""What can be wrong with a model's files, found without building the model: in the time that it takes to read them.

A damaged shard or a tokenizer of another model would otherwise show hours later, or not as what it is: transformers begins
to build what config.json says, and an index that is out of range is said by a kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench.core import consent
from wpn_bench.core.json_files import load_json
from wpn_bench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


INDEX = "model.safetensors.index.json"
AGAIN = "fetch or save the model again"


def check(folder: Path) -> None:
    """Raise `UserError` if config.json, weights and tokenizer cannot be those of one whole model.

    The numbers of safetensors are looked at; of pickled weights only whether they are that and no program.
    """
    config = read_config(folder)
    shards = _shards(folder)
    if shards:
        _check_shapes(folder, config.get_text_config(), _read(shards))
    else:
        _check_pickles(folder)
    _check_tokenizer(folder, config.get_text_config())


def read_config(folder: Path) -> PreTrainedConfig:
    """config.json as transformers reads it; code that comes with the model is run by consent only."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=consent.code_allowed())
    except Exception as e:  # each architecture checks its own fields in its own way
        raise UserError(
            f"{folder}/config.json is of no model that transformers reads ({' '.join(str(e).split())[:160]})",
            "give a model of an architecture that it has (OPT, GPT-Neo, GPT-2, Llama, ...)",
        ) from e


def check_causal(folder: Path) -> None:
    """Raise `UserError` for an architecture that is no causal language model, or reads in both directions."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = read_config(folder)
    if getattr(config, "auto_map", None) and consent.code_allowed():
        return  # its class is in code of its own
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise not_causal(folder, f"model_type {config.model_type!r}")
    # These have a causal class as well, which reads in both directions unless it is told to be a decoder.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise not_causal(folder, f"{config.model_type!r} with is_decoder false reads in both directions")


def not_causal(folder: Path, why: object) -> UserError:
    """The error for a model that cannot be loaded as what a run needs."""
    return UserError(
        f"{folder} cannot be loaded as a causal language model ({' '.join(str(why).split())[:200]})",
        "give a model that AutoModelForCausalLM reads (OPT, GPT-Neo, GPT-2, Llama, ...)",
    )


def _shards(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read; none where the weights are pickled."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    placed = load_json(index, AGAIN)
    weight_map = placed.get("weight_map") if isinstance(placed, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is no index of weights (no weight_map)", AGAIN)
    names = dict.fromkeys(weight_map.values())
    for name in names:
        # A shard elsewhere would stand outside of the digest that the model is known by.
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names a file outside of its folder ({str(name)[:60]})", AGAIN)
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, one of the {len(names)} files of its weights", AGAIN)
    return [folder / name for name in names]


def _read(shards: Iterable[Path]) -> dict[str, list[int]]:
    """Name -> shape of every weight; `UserError` for a file that is cut off or damaged and for a number that is none."""
    import torch
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in shards:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    weight = opened.get_tensor(name)
                    shapes[name] = list(weight.shape)
                    numbers = weight.float() if weight.is_floating_point() and weight.element_size() == 1 else weight
                    if not torch.isfinite(numbers).all():
                        raise UserError(f"{file} holds weights that are no finite numbers (first: {name})", AGAIN)
        except (SafetensorError, OSError, ValueError, RuntimeError) as e:
            said = " ".join(str(e).split())[:120]
            raise UserError(f"the weights {file} cannot be read: cut off or damaged ({said})", AGAIN) from e
    return shapes


def _check_pickles(folder: Path) -> None:
    """Nothing but tensors and plain values is read of a pickle; one that holds more could run code."""
    import zipfile

    import torch

    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as e:  # whatever the unpickler of that day raises
            raise UserError(
                f"the weights {file} are damaged, or hold more than tensors ({' '.join(str(e).split())[:80]})",
                "give the model as safetensors (save_pretrained)",
            ) from e


def _check_shapes(folder: Path, config: PreTrainedConfig, shapes: Mapping[str, list[int]]) -> None:
    """config.json must speak of these weights: transformers would build its model first, however large, and then find
    that they do not fit."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > len(shapes):
        raise UserError(f"{folder}/config.json says {layers} layers, its weights are {len(shapes)} tensors", AGAIN)
    sizes = {size for shape in shapes.values() for size in shape}
    for field in ("vocab_size", "hidden_size"):
        value = getattr(config, field, None)
        if isinstance(value, int) and value not in sizes:
            raise UserError(f"{folder}/config.json says {field} {value}, which none of its weights has", AGAIN)


def _check_tokenizer(folder: Path, config: PreTrainedConfig) -> None:
    """No token may lie beyond the model's embedding."""
    from wpn_bench.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if not (ids := tokenizer("One, two.")["input_ids"]) or None in ids:
        raise UserError(
            f"the tokenizer in {folder} makes no tokens of a text",
            "save it again with tokenizer.save_pretrained(folder)",
        )
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        return
    token, last = max(vocabulary.items(), key=lambda entry: entry[1], default=("", -1))
    if last >= size:
        raise UserError(
            f"the tokenizer in {folder} is not this model's: token {json.dumps(token[:40])} has number {last}, and the model"
            f" knows {size}",
            "save the model's own beside its weights with tokenizer.save_pretrained(folder)",
        )


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json as plain values; `UserError` for a folder that has none, or none that can be read."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(
            f"{folder} holds no model (no config.json)", "give a folder written by save_pretrained, or a hub id"
        )
    settings = load_json(config, AGAIN)
    if not isinstance(settings, dict):
        raise UserError(f"{config} is not a JSON object", AGAIN)
    return settings
