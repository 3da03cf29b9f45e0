"""Low-rank adapters that another program trained: merge them into their base model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wpn_bench.core.files import digest_file, digest_of
from wpn_bench.core.json_files import load_json
from wpn_bench.errors import UserError, text_of
from wpn_bench.jobs.store import default_store

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def is_adapter(folder: Path) -> bool:
    """Return whether a folder contains an adapter, and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not any(
        p.suffix in (".safetensors", ".bin") and p.name.startswith(("model", "pytorch_model")) for p in folder.iterdir()
    )


def named_base(folder: Path) -> tuple[str, str | None]:
    """Return the base model that an adapter names, and its revision.

    Raises:
        UserError: It names none.
    """
    settings = load_json(folder / ADAPTER_CONFIG, "save the adapter again with peft's save_pretrained")
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(
            f"the adapter in {folder} names no base model", "write it into adapter_config.json: base_model_name_or_path"
        )
    if not os.path.isabs(base) and (folder / base).is_dir():
        base = str(folder / base)
    return base, settings.get("revision")


def merge_adapter(folder: Path, base: Path, base_digest: str) -> Path:
    """Merge an adapter into its base model, in the base's own data type.

    The merged model is kept in the default store, so it is made once.

    Args:
        folder: Contains the adapter, and possibly a tokenizer.
        base: The folder of the base model.
        base_digest: The digest of the base model.

    Returns:
        The folder of the merged model and its tokenizer.

    Raises:
        UserError: The adapter cannot be read, or does not fit the base model.
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

    from wpn_bench.models.tokenizer import load_tokenizer, silence_transformers

    silence_transformers()
    partial = merged.with_name(f"{digest}.{os.getpid()}")
    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        whole = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError) as e:
        raise UserError(
            f"the adapter in {folder} cannot be merged into {base} ({' '.join(text_of(e).split())[:200]})",
            "merge it with its own base model (merge_and_unload) and give the whole model",
        ) from e
    tokenizer = load_tokenizer(folder if any((folder / name).is_file() for name in _TOKENIZER_FILES) else base)
    with torch.no_grad():
        whole.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(merged)
    except OSError:  # another process was faster
        shutil.rmtree(partial, ignore_errors=True)
    return merged
