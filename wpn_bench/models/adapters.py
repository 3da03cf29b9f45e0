"""Merge low-rank adapters that another program trained into their base model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wpn_bench.core.files import digest_file, digest_of
from wpn_bench.core.json_files import load_json
from wpn_bench.core.model_files import makes_tokenizer
from wpn_bench.errors import UserError, text_of
from wpn_bench.jobs.store import default_store

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter and not a whole model."""
    return holds_adapter(p.name for p in folder.iterdir())


def holds_adapter(names: Iterable[str]) -> bool:
    """Return whether files with these names are an adapter and not a whole model. Some trainers add a config.json."""
    names = set(names)
    weights = (n for n in names if n.endswith((".safetensors", ".bin")) and n.startswith(("model", "pytorch_model")))
    return ADAPTER_CONFIG in names and not any(weights)


def named_base(folder: Path) -> tuple[str, str | None] | None:
    """Return the base model that an adapter's settings name, and its revision, or None if they name none.

    Raises:
        UserError: The settings cannot be read, or name the adapter itself.
    """
    settings = load_json(folder / ADAPTER_CONFIG, "save the adapter again with peft's save_pretrained")
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        return None
    if not os.path.isabs(base) and (folder / base).is_dir():
        base = str(folder / base)
    if os.path.isdir(base) and folder.samefile(base):
        raise UserError(
            f"the adapter in {folder} names itself as its base model",
            "write the base model into the field base_model_name_or_path of adapter_config.json",
        )
    return base, settings.get("revision")


def merge_adapter(folder: Path, base: Path, base_digest: str) -> Path:
    """Merge an adapter into its base model, in the data type of the base.

    The merged model is kept in the default store, so that later runs use it again.

    Args:
        folder: Folder of the adapter, which may also contain a tokenizer.
        base: Folder of the base model.
        base_digest: Digest of the base model.

    Returns:
        The folder of the merged model and its tokenizer.

    Raises:
        UserError: The adapter cannot be read, or does not match the base model.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(f"the adapter in {folder} has no weights ({_WEIGHTS[0]})", "fetch or save the adapter again")
    if weights.suffix == ".bin":
        raise UserError(f"the adapter in {folder} has its weights as a pickle", f"save it as {_WEIGHTS[0]}")
    own = [folder / ADAPTER_CONFIG, weights, *sorted(p for p in folder.iterdir() if p.suffix in (".jinja", ".json"))]
    digest = digest_of([base_digest, {p.name: digest_file(p) for p in own}])
    merged = default_store() / "merged" / digest
    if (merged / "config.json").is_file():
        return merged
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from wpn_bench.models.tokenizer import read_tokenizer, silence_transformers

    silence_transformers()
    partial = merged.with_name(f"{digest}.{os.getpid()}")
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        _resize(model, weights)
        adapted = PeftModel.from_pretrained(model, str(folder))
        if not hasattr(adapted.base_model, "merge_and_unload"):  # prefix tuning and similar methods change no weights
            raise ValueError(f"{adapted.peft_config['default'].peft_type} cannot be merged into weights")
        _untie(adapted)
        whole = adapted.merge_and_unload(safe_merge=True)
    except Exception as e:  # peft and safetensors raise their own classes of errors
        raise UserError(
            f"the adapter in {folder} cannot be merged into {base} ({' '.join(text_of(e).split())[:200]})",
            "merge it into the base model on which it was trained (merge_and_unload), and give the merged model",
        ) from e
    tokenizer = read_tokenizer(folder if any(makes_tokenizer(p.name) for p in folder.iterdir()) else base)
    with torch.no_grad():
        whole.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(merged)
    except OSError:  # another process has stored the merged model first
        shutil.rmtree(partial, ignore_errors=True)
    return merged


def _resize(model: PreTrainedModel, weights: Path) -> None:
    """Resize the embeddings of the base model to those in the adapter, which has more if tokens were added."""
    import torch
    from safetensors import safe_open

    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if any(module is one for one in layers)}
    with safe_open(weights, framework="pt") as file:
        sizes = {
            file.get_slice(key).get_shape()[0]
            for key in file.keys()  # noqa: SIM118 (not a dictionary)
            if key.endswith(".weight") and "lora_" not in key and names & set(key.split("."))
        }
    if len(sizes) == 1 and (size := sizes.pop()) != layers[0].weight.shape[0]:
        # As in the training of the adapter, rows that it does not contain become the mean of the other rows.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.resize_token_embeddings(size)


def _untie(adapted: PeftModel) -> None:
    """Separate tied input and output embeddings if only one has an adapter. Otherwise it would change both."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = adapted.get_base_model()
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    if len(layers) < 2 or not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    inner, outer = (layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers)
    if outer.weight is inner.weight:
        outer.weight = torch.nn.Parameter(outer.weight.detach().clone())
        model.config.tie_word_embeddings = False
