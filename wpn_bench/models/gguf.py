"""Convert a GGUF file to a folder of safetensors, which every stage can load and train.

transformers dequantises the weights. The folder is kept in the user's cache under the digest of the file, so that each
file is converted only once.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import platformdirs

from wpn_bench.core.files import digest_file
from wpn_bench.errors import UserError

_SHARD = "5GB"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
JOIN = "join the parts with llama.cpp: llama-gguf-split --merge FIRST_PART OUT.gguf"


def file_of(asked: str) -> Path | None:
    """Return the GGUF file that a path names, or None if it names none.

    The path may be the file itself, or a folder without another model that contains a single GGUF file.

    Raises:
        UserError: The folder contains several GGUF files.
    """
    if os.path.isfile(asked):
        return Path(asked) if asked.endswith(".gguf") else None
    if not os.path.isdir(asked) or os.path.exists(os.path.join(asked, "config.json")):
        return None
    found = sorted(name for name in os.listdir(asked) if name.endswith(".gguf"))
    if found and _PART.search(found[0]):
        raise UserError(f"{asked} has a GGUF file in several parts ({found[0]}, ...)", JOIN)
    if len(found) > 1:
        raise UserError(
            f"{asked} has {len(found)} GGUF files ({', '.join(found)[:160]})", "give the path of one of them"
        )
    return Path(asked, found[0]) if found else None


def converted(file: Path) -> Path:
    """Return a folder with the model of a GGUF file in float32. The file is converted unless this was done before.

    Raises:
        UserError: The package gguf is not installed, or transformers cannot read the file.
    """
    stat = file.stat()
    return _converted(file.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _converted(file: Path, size: int, changed: int) -> Path:
    """Convert a file, identified by its size in bytes and modification time in ns."""
    if _PART.search(file.name):
        raise UserError(f"{file.name} is one part of a GGUF file, but transformers only reads whole files", JOIN)
    if find_spec("gguf") is None:
        raise UserError(
            f"{file.name} is a GGUF file, but the package that reads it is not installed",
            "pip install 'wpn-bench[gguf]'",
        )
    root = Path(os.environ.get("WPN_BENCH_GGUF") or Path(platformdirs.user_cache_dir("wpn-bench")) / "gguf")
    folder = root / digest_file(file)[:32]
    if folder.is_dir():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wpn_bench.models.tokenizer import silence_transformers

    silence_transformers()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        work = Path(temporary) / "model"
        try:
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as e:  # the type of the exception depends on the architecture and the tokenizer
            raise UserError(
                f"transformers cannot read {file.name} ({' '.join(str(e).split())[:160]})",
                "give the original model, or a GGUF file with an architecture that transformers can convert",
            ) from e
        # The weights are not quantised any more. So remove the marks of quantisation from the model and its settings.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(work, max_shard_size=_SHARD)
        tokenizer.save_pretrained(work)
        if not folder.is_dir():  # another process may have stored the model first
            shutil.move(work, folder)
    return folder
