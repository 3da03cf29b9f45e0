"""Find the model that a user named: the built-in lab model, a folder, or a hub id at a commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench import hub
from wpn_bench.core import consent
from wpn_bench.core.files import Signature, digest_file, digest_of
from wpn_bench.core.model_files import WEIGHT_SUFFIXES, makes_model, makes_tokenizer, model_signature
from wpn_bench.errors import UserError
from wpn_bench.models import gguf
from wpn_bench.models.adapters import holds_adapter, is_adapter, merge_adapter, named_base
from wpn_bench.models.files import check_files, read_settings

LAB, LAB_ORACLE = "lab", "lab:oracle"  # the built-in models
_SETTINGS_FILES = ("config.json", "tokenizer_config.json")
# These files are not downloaded: weights for other frameworks, checkpoints, training states and examples.
_NOT_NEEDED = (
    "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.md", "onnx/*", "*.pt", "*.pth", "*.ckpt", "*.pkl",
    "training_args.bin", "optimizer.bin", "original/*", ".gitattributes",
)  # fmt: skip

_REVISION = re.compile(r"(?P<id>[^@\s]+/[^@\s]+|[^@/\s]+)@(?P<revision>[^@\s]+)")


@dataclass(frozen=True)
class ModelRef:
    """A model that is on this machine.

    Attributes:
        asked: The name that the user gave.
        path: Folder of its files.
        digest: SHA-256 over the files that affect its outputs (see `folder_digest`).
        revision: Commit of a hub model; None for a local folder.
        seen: Names, sizes and modification times of the files when the digest was computed.
    """

    asked: str
    path: Path
    digest: str
    revision: str | None
    seen: Signature | None = None

    @property
    def is_lab(self) -> bool:
        return self.asked == LAB

    @property
    def fetched(self) -> list[hub.FetchedItem]:
        """Return the files that came from the hub; empty for a local folder."""
        files = tuple(p for p in self.path.rglob("*") if p.is_file())
        return [hub.FetchedItem("model", self.asked, self.revision, files)] if self.revision else []


def resolve(asked: str, revision: str | None = None, base: ModelRef | None = None) -> ModelRef:
    """Find a model, and download it if it is a hub model that is not cached.

    Args:
        asked: `lab`, a folder, or a hub id.
        revision: Branch, tag or commit of a hub id; None means the default branch.
        base: The base model of an adapter, if the adapter names none or one that is not on this machine.

    Returns:
        The model. Its files have been checked.

    Raises:
        UserError: The folder contains no model, the id is unknown, or the model is not cached and the hub cannot be
            reached. Also if the model needs its own code or has only pickled weights, and the user did not permit this
            (see `consent.py`).
    """
    if (folder := _here(asked, base)) is not None:
        _check_consent(asked, folder, [p.name for p in folder.iterdir()])
        return _ref(asked, folder, None)
    commit = commit_of(asked, revision)
    if (adapter := _hub_adapter(asked, commit)) is not None:
        return _ref(asked, _merged(adapter, base), None)
    return _ref(asked, _download(asked, commit), commit)


def commit_of(asked: str, revision: str | None) -> str:
    """Return the commit of a hub id.

    Args:
        asked: The hub id.
        revision: Branch, tag or commit; None means the default branch.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        UserError: `asked` is not a hub id, or the commit cannot be found.
    """
    from huggingface_hub.errors import HFValidationError

    if not asked.strip():
        raise UserError("the name of the model is empty", "give a folder or a hub id such as facebook/opt-125m")
    if os.path.exists(os.path.expanduser(asked)):
        raise UserError(f"{asked} is a file", "give the folder that contains config.json and the weights")
    if not hub.HUB_ID.fullmatch(asked) or asked.startswith((".", "/")):
        raise UserError(f"no model folder at {asked}", "give an existing folder or a hub id such as facebook/opt-125m")
    try:
        return hub.resolve_commit(asked, revision)
    except HFValidationError as e:
        raise UserError(
            f"there is no model folder at {asked}, and this is not a valid hub id",
            "give a folder, or an id such as facebook/opt-125m",
        ) from e


def settings_folder(asked: str, revision: str | None = None) -> Path:
    """Return a folder with the model's config.json, and with its own code if the user permitted it.

    No weights are downloaded.

    Args:
        asked: `lab`, a folder, or a hub id.
        revision: Branch, tag or commit of a hub id; None means the default branch.

    Returns:
        The folder.

    Raises:
        UserError: The hub id is unknown or cannot be downloaded.
    """
    if (folder := _here(asked)) is not None:
        return folder
    commit = commit_of(asked, revision)
    return hub.snapshot(asked, commit, allow=[*_SETTINGS_FILES, *(["*.py"] if consent.code_allowed() else [])])


def split_revision(source: str) -> tuple[str, str | None]:
    """Split `org/name@revision`. The revision of a folder, and of a hub id without `@`, is None."""
    here = os.path.exists(os.path.expanduser(source))
    match = None if here else _REVISION.fullmatch(source)
    return (match["id"], match["revision"]) if match else (source, None)


def lies_here(asked: str) -> bool:
    """Return whether the model is on this machine: the built-in lab model or a folder, which need no download."""
    return _here(asked) is not None


def _here(asked: str, base: ModelRef | None = None) -> Path | None:
    """Return the folder of a local model, or None if `asked` is not local. `base` is as in `resolve`."""
    if asked in (LAB, LAB_ORACLE):
        from wpn_bench import lab

        return lab.base_model() if asked == LAB else lab.oracle_model()
    # Path.is_dir would raise for a name that is too long for a file system.
    folder = os.path.expanduser(asked)
    if (file := gguf.file_of(folder)) is not None:
        return gguf.converted(file)
    if not os.path.isdir(folder):
        return None
    return _merged(Path(folder), base) if is_adapter(Path(folder)) else Path(folder)


def _hub_adapter(asked: str, commit: str) -> Path | None:
    """Return the folder of a hub id that contains an adapter, or None if it contains a whole model."""
    return (
        hub.snapshot(asked, commit, ignore=[*_NOT_NEEDED, "*.py"])
        if holds_adapter(hub.list_files(asked, commit))
        else None
    )


def base_of_adapter(asked: str, revision: str | None = None, base: ModelRef | None = None) -> ModelRef | None:
    """Return the base model of an adapter, or None if `asked` is a whole model.

    Args:
        asked: `lab`, a folder, a file, or a hub id.
        revision: Branch, tag or commit of a hub id; None means the default branch.
        base: See `resolve`.

    Returns:
        The base model.

    Raises:
        UserError: The base model cannot be found.
    """
    path = Path(os.path.expanduser(asked))
    builtin = asked in (LAB, LAB_ORACLE)
    if builtin or os.path.exists(path):
        return _base_of(path, base) if os.path.isdir(path) and not builtin and is_adapter(path) else None
    adapter = _hub_adapter(asked, commit_of(asked, revision))
    return None if adapter is None else _base_of(adapter, base)


def _merged(adapter: Path, base: ModelRef | None) -> Path:
    """Merge the adapter in a folder into its base model."""
    found = _base_of(adapter, base)
    return merge_adapter(adapter, found.path, found.digest)


def _base_of(adapter: Path, base: ModelRef | None) -> ModelRef:
    """Return the base model that an adapter names, or `base` if it names none that could be on this machine."""
    named = named_base(adapter)
    if named is None and base is None:
        raise UserError(
            f"the adapter in {adapter} names no base model",
            "write its name into base_model_name_or_path of adapter_config.json, or name the base: wpn-bench evaluate "
            "--model BASE --candidate NAME=ADAPTER",
        )
    if named is None or (base is not None and os.path.isabs(named[0]) and not os.path.exists(named[0])):
        assert base is not None
        return base
    name, revision = named
    try:
        return resolve(name, revision)
    except UserError as e:
        raise UserError(
            f"the base model {name!r} of the adapter in {adapter} cannot be found ({e})",
            "write its folder or hub id into the field base_model_name_or_path of adapter_config.json",
        ) from e


def _ref(asked: str, folder: Path, revision: str | None) -> ModelRef:
    """Check the model in a folder and return its description.

    `revision` is the commit if the model was downloaded from the hub, else None.
    """
    # The signature is computed before the files are read, so that a change during the reading is detected later.
    seen = model_signature(folder)
    digests = _file_digests(folder)
    if revision is not None:  # this check comes first, because it lets damaged files be downloaded again
        hub.check_files(asked, folder, digests)
    _check_folder(folder)
    return ModelRef(asked, folder, digest_of(digests), revision, seen)


def _check_folder(folder: Path) -> None:
    """Raise `UserError` if the folder does not contain one complete model."""
    read_settings(folder)
    if (folder / "adapter_config.json").is_file():  # transformers would load the base model that the adapter names
        raise UserError(
            f"{folder} contains an adapter", "merge it into its base (merge_and_unload) and save the merged model"
        )
    if not any(p.suffix in WEIGHT_SUFFIXES and p.is_file() for p in folder.iterdir()):
        if any(p.name.startswith(("pytorch_model_fsdp", "global_step")) for p in folder.iterdir()):
            raise UserError(
                f"{folder} contains the sharded weights of a training (FSDP or DeepSpeed), which transformers does not read",
                "join them: `accelerate merge-weights` for FSDP, zero_to_fp32.py for DeepSpeed",
            )
        raise UserError(f"{folder} contains no weights (no *.safetensors or *.bin)", "fetch or save the model again")
    if not any(p.is_file() and makes_tokenizer(p.name) for p in folder.iterdir()):
        raise UserError(
            f"{folder} contains no tokenizer", "save it next to the weights with tokenizer.save_pretrained(folder)"
        )
    check_files(folder)


def _check_consent(asked: str, folder: Path, names: Iterable[str]) -> None:
    """Raise `UserError` if the model needs something that the user did not permit.

    Args:
        asked: The name that the user gave.
        folder: Folder with config.json and tokenizer_config.json. The other files may be missing.
        names: Names of all files of the model.
    """
    if (code := code_named(folder)) and not consent.code_allowed():
        raise UserError(
            f"{asked} contains its own code ({code}), which would run with your rights",
            "read the code, then add --trust-remote-code (`trust_remote_code: true`), or give a model that transformers knows",
        )
    if code and "--" in code:
        raise UserError(
            f"{asked} needs code from another repository ({code}) at an unknown commit",
            "copy the code next to the weights, and write the name of the copy into config.json",
        )
    names = set(names)
    pickled = sorted(n for n in names if "/" not in n and n.endswith(".bin") and n.startswith("pytorch_model"))
    if pickled and not has_safetensors(names) and not consent.pickles_allowed():
        raise UserError(
            f"{asked} has its weights only as pickles ({pickled[0]}), which can contain code",
            "add --allow-pickle (`allow_pickle: true`), with which only tensors are read from them, or give a revision or"
            " copy with *.safetensors",
        )


def code_named(folder: Path) -> str:
    """Return the class in the model's own code that is needed to load it.

    The name is empty if transformers has code for the model.
    """
    import transformers

    def settings(name: str) -> dict[str, Any]:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # check_files reports the error
        return found if isinstance(found, dict) else {}

    config, tokenizer = settings("config.json"), settings("tokenizer_config.json")
    if config.get("auto_map") and (
        consent.code_allowed() or config.get("model_type") not in transformers.CONFIG_MAPPING
    ):
        return _first(config["auto_map"])
    # If the model's own code is permitted, transformers uses it instead of its own class.
    known = hasattr(transformers, str(tokenizer.get("tokenizer_class")))
    if tokenizer.get("auto_map") and (consent.code_allowed() or not known):
        return _first(tokenizer["auto_map"])
    return ""


def _first(named: Any) -> str:
    """Return the first class in an `auto_map`: {"AutoModel": "module.Class"}, or for a tokenizer a list of two."""
    while isinstance(named, dict | list) and named:
        named = next((one for one in (named.values() if isinstance(named, dict) else named) if one), "")
    return str(named)


def has_safetensors(names: Iterable[str]) -> bool:
    """Return whether transformers would read safetensors, and not pickles, from a folder with these files."""
    return bool({"model.safetensors", "model.safetensors.index.json"} & set(names))


def _file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that affects the model's outputs, by name."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and makes_model(p.name))
    safe = has_safetensors(p.name for p in files)
    found = {p.name: digest_file(p) for p in files if not (safe and p.suffix == ".bin")}
    if code_named(folder) and consent.code_allowed():
        found |= {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*.py"))}
    return found


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over a model's weights, configuration and tokenizer, and its own code if permitted."""
    return digest_of(_file_digests(folder))


def check_permitted(asked: str, commit: str) -> list[str]:
    """Check that the user permitted what a hub model needs, before its weights are downloaded.

    Args:
        asked: The hub id.
        commit: The commit.

    Returns:
        The names of the model's files.

    Raises:
        UserError: The model needs something that the user did not permit.
    """
    settings = hub.snapshot(asked, commit, allow=_SETTINGS_FILES)
    names = hub.list_files(asked, commit)
    _check_consent(asked, settings, names)
    return names


def _download(asked: str, commit: str) -> Path:
    """Download a model at a commit and return its folder.

    The settings are downloaded first. So a model that needs a missing permission fails before its weights are
    downloaded.
    """
    names = check_permitted(asked, commit)
    ignore = unwanted(names)
    if not consent.code_allowed():
        ignore.append("*.py")
    return hub.snapshot(asked, commit, ignore=ignore)


def unwanted(files: Iterable[str]) -> list[str]:
    """Return filename patterns of the files that are left out when a repository is downloaded.

    If the repository contains safetensors, pickled weights are left out.
    """
    return [*_NOT_NEEDED, *(["*.bin"] if has_safetensors(files) else [])]
