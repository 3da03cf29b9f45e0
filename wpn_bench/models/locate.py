"""Find the model that a user named: the lab's, a folder, or a hub id at a commit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wpn_bench import hub
from wpn_bench.core import consent
from wpn_bench.core.files import Signature, digest_file, digest_of, folder_signature
from wpn_bench.errors import UserError
from wpn_bench.models import model_files

LAB = "lab"
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = ("config.json", "tokenizer_config.json")
_PARTS = (".json", ".model", ".txt", ".jinja", *_WEIGHTS)
# Other frameworks' weights, checkpoints and training states, examples.
_NOT_NEEDED = (
    "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.md", "onnx/*", "*.pt", "*.pth", "*.ckpt", "*.pkl",
    "training_args.bin", "optimizer.bin", "original/*", ".gitattributes",
)  # fmt: skip


@dataclass(frozen=True)
class ModelRef:
    """A model that lies on this machine: what was asked for, where it is, which it is."""

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
        """What of it came from the hub: nothing, for a folder."""
        files = tuple(p for p in self.path.rglob("*") if p.is_file())
        return [hub.FetchedItem("model", self.asked, self.revision, files)] if self.revision else []


def resolve(asked: str, revision: str | None = None) -> ModelRef:
    """Find `asked` (`lab`, a folder, or a hub id) and fetch it if need be.

    Raises `UserError` for a folder without a model, an unknown id, and no network with nothing cached; for a model that
    needs code of its own, or has its weights as pickles only, without the consent to it (see `consent.py`).
    """
    if (folder := _here(asked)) is not None:
        _check_consent(asked, folder, [p.name for p in folder.iterdir()])
        return _ref(asked, folder, None)
    commit = _commit(asked, revision)
    return _ref(asked, _download(asked, commit), commit)


def _commit(asked: str, revision: str | None) -> str:
    """The commit of a hub id; `UserError` for what is none."""
    from huggingface_hub.errors import HFValidationError

    if not asked.strip():
        raise UserError("no model is named", "give a folder or a hub id such as facebook/opt-125m")
    if os.path.exists(os.path.expanduser(asked)):
        raise UserError(f"{asked} is a file", "give the folder that holds config.json and the weights")
    if not hub.HUB_ID.fullmatch(asked) or asked.startswith((".", "/")):
        raise UserError(f"no model folder at {asked}", "give an existing folder or a hub id such as facebook/opt-125m")
    try:
        return hub.resolve_commit(asked, revision)
    except HFValidationError as e:
        raise UserError(
            f"no model folder at {asked}, and no hub id", "give a folder, or an id such as facebook/opt-125m"
        ) from e


def settings_folder(asked: str, revision: str | None = None) -> Path:
    """A folder with the config.json of `asked` (`lab`, a folder, or a hub id, of which no weights are fetched), and with
    the code of its own if that may be run. Raises `UserError` for a hub id that cannot be had."""
    if (folder := _here(asked)) is not None:
        return folder
    commit = _commit(asked, revision)
    return hub.snapshot(asked, commit, allow=[*_SETTINGS, *(["*.py"] if consent.code_allowed() else [])])


def lies_here(asked: str) -> bool:
    """Whether `asked` is the lab's model or a folder, so that nothing is fetched for it."""
    return _here(asked) is not None


def _here(asked: str) -> Path | None:
    if asked == LAB:
        from wpn_bench import lab

        return lab.base_model()
    # Not Path's own question: it raises for a name too long to be a file's.
    folder = os.path.expanduser(asked)
    return Path(folder) if os.path.isdir(folder) else None


def _ref(asked: str, folder: Path, revision: str | None) -> ModelRef:
    """`revision`: the commit, of what was fetched from the hub."""
    # Looked at before it is read: what changes meanwhile is seen later on.
    seen = folder_signature(folder)
    digests = _digests(folder)
    if revision is not None:  # first of all, for what is damaged is fetched anew
        hub.check_files(asked, folder, digests)
    _check_folder(folder)
    return ModelRef(asked, folder, digest_of(digests), revision, seen)


def _check_folder(folder: Path) -> None:
    model_files.settings_of(folder)
    if (folder / "adapter_config.json").is_file():  # transformers would load the model that it names
        raise UserError(f"{folder} holds an adapter", "merge it into its base (merge_and_unload) and save the whole")
    if not any(p.suffix in _WEIGHTS and p.is_file() for p in folder.iterdir()):
        raise UserError(f"{folder} holds no weights (no *.safetensors or *.bin)", "fetch or save the model again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise UserError(
            f"{folder} holds no tokenizer", "save it beside the weights with tokenizer.save_pretrained(folder)"
        )
    model_files.check(folder)


def _check_consent(asked: str, folder: Path, names: Iterable[str]) -> None:
    """Raise `UserError` for what the model in `folder`, whose whole has these files, needs and nobody agreed to.

    `folder` need hold no more than the settings (config.json, tokenizer_config.json).
    """
    if (code := code_named(folder)) and not consent.code_allowed():
        raise UserError(
            f"{asked} brings its own code ({code}), which would run with your rights",
            "read it, then add --trust-remote-code (`trust_remote_code: true`), or give a model that transformers knows",
        )
    if code and "--" in code:
        raise UserError(
            f"{asked} runs code of another repository ({code}), whose commit nobody knows",
            "copy the code beside the weights and its name into config.json",
        )
    names = set(names)
    pickled = sorted(n for n in names if "/" not in n and n.endswith(".bin") and n.startswith("pytorch_model"))
    if pickled and not _is_safe(names) and not consent.pickles_allowed():
        raise UserError(
            f"{asked} has its weights only as pickles ({pickled[0]}), which can hold code",
            "add --allow-pickle (`allow_pickle: true`): they are then read as tensors and nothing else; or give a revision"
            " or copy with *.safetensors",
        )


def code_named(folder: Path) -> str:
    """The code of its own that a model needs because transformers has none for it; empty where it needs none."""
    import transformers

    def settings(name: str) -> dict[str, Any]:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # whoever reads it says so better
        return found if isinstance(found, dict) else {}

    config, tokenizer = settings("config.json"), settings("tokenizer_config.json")
    if config.get("auto_map") and (
        consent.code_allowed() or config.get("model_type") not in transformers.CONFIG_MAPPING
    ):
        return _first(config["auto_map"])
    # Given the consent, transformers takes the code even where it has its own.
    known = hasattr(transformers, str(tokenizer.get("tokenizer_class")))
    if tokenizer.get("auto_map") and (consent.code_allowed() or not known):
        return _first(tokenizer["auto_map"])
    return ""


def _first(named: Any) -> str:
    """The first class that an `auto_map` names: {"AutoModel": "module.Class"}, or a list of two in a tokenizer's."""
    while isinstance(named, dict | list) and named:
        named = next((one for one in (named.values() if isinstance(named, dict) else named) if one), "")
    return str(named)


def _is_safe(names: Iterable[str]) -> bool:
    """Whether transformers would read safetensors, and not the pickles beside them."""
    return bool({"model.safetensors", "model.safetensors.index.json"} & set(names))


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that decides what the model says, by name."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _PARTS)
    safe = _is_safe(p.name for p in files)
    found = {p.name: digest_file(p) for p in files if not (safe and p.suffix == ".bin")}
    if code_named(folder) and consent.code_allowed():
        found |= {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*.py"))}
    return found


def check_permitted(asked: str, commit: str) -> list[str]:
    """Raise `UserError` for a model of the hub that nobody agreed to read, before its weights are fetched; the names of
    its files."""
    settings = hub.snapshot(asked, commit, allow=_SETTINGS)
    names = hub.list_files(asked, commit)
    _check_consent(asked, settings, names)
    return names


def _download(asked: str, commit: str) -> Path:
    """The model's files at that commit: its settings first, so that what is refused is refused before it is fetched."""
    names = check_permitted(asked, commit)
    ignore = unwanted(names)
    if not consent.code_allowed():
        ignore.append("*.py")
    return hub.snapshot(asked, commit, ignore=ignore)


def unwanted(files: Iterable[str]) -> list[str]:
    """Patterns of what is not fetched of a repository with these files: pickled weights where there are safetensors."""
    return [*_NOT_NEEDED, *(["*.bin"] if _is_safe(files) else [])]
