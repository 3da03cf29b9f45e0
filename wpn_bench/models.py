"""Models: find one by hub id or folder, know it by its digest, load it.

A model is addressed by the SHA-256 of its weights, configuration and tokenizer files, never by its name: a folder
whose files changed is another model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wpn_bench import consent, hub, model_files
from wpn_bench.errors import UserError
from wpn_bench.machine import SPARE, free_of_shell
from wpn_bench.rates import count_parameters
from wpn_bench.store import Signature, digest_file, digest_of, signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAB = "lab"
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = ("config.json", "tokenizer_config.json")
_PARTS = (".json", ".model", ".txt", ".jinja", *_WEIGHTS)
# Other frameworks' weights, checkpoints and training states, examples.
_NOT_NEEDED = (
    "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.tflite", "*.gguf", "*.md", "onnx/*", "*.pt", "*.pth", "*.ckpt", "*.pkl",
    "training_args.bin", "optimizer.bin", "original/*", ".gitattributes",
)  # fmt: skip
SHARD = "5GB"  # weights a file holds at most, as usual on the hub


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
    def fetched(self) -> list[hub.Fetched]:
        """What of it came from the hub: nothing, for a folder."""
        files = tuple(p for p in self.path.rglob("*") if p.is_file())
        return [hub.Fetched("model", self.asked, self.revision, files)] if self.revision else []


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
        return hub.commit_of(asked, revision)
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
    return hub.snapshot(asked, commit, allow=[*_SETTINGS, *(["*.py"] if consent.to_code() else [])])


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
    seen = signature(folder)
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
    if (code := code_named(folder)) and not consent.to_code():
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
    if pickled and not _is_safe(names) and not consent.to_pickles():
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
    if config.get("auto_map") and (consent.to_code() or config.get("model_type") not in transformers.CONFIG_MAPPING):
        return _first(config["auto_map"])
    # Given the consent, transformers takes the code even where it has its own.
    known = hasattr(transformers, str(tokenizer.get("tokenizer_class")))
    if tokenizer.get("auto_map") and (consent.to_code() or not known):
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
    if code_named(folder) and consent.to_code():
        found |= {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*.py"))}
    return found


def check_permitted(asked: str, commit: str) -> list[str]:
    """Raise `UserError` for a model of the hub that nobody agreed to read, before its weights are fetched; the names of
    its files."""
    settings = hub.snapshot(asked, commit, allow=_SETTINGS)
    names = hub.names_of(asked, commit)
    _check_consent(asked, settings, names)
    return names


def _download(asked: str, commit: str) -> Path:
    """The model's files at that commit: its settings first, so that what is refused is refused before it is fetched."""
    names = check_permitted(asked, commit)
    ignore = unwanted(names)
    if not consent.to_code():
        ignore.append("*.py")
    return hub.snapshot(asked, commit, ignore=ignore)


def unwanted(files: Iterable[str]) -> list[str]:
    """Patterns of what is not fetched of a repository with these files: pickled weights where there are safetensors."""
    return [*_NOT_NEEDED, *(["*.bin"] if _is_safe(files) else [])]


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


# --- memory ----------------------------------------------------------------------------------------------------------

# The base model and the one at hand: what a run needs at the same time.
_LOADED: OrderedDict[tuple[str, Signature, str, str, str], tuple[Any, Any]] = OrderedDict()
KEEP = 2
OFFLOADS = ("none", "cpu", "disk")
WORKING_TOKENS = 1024  # that a pass of measuring holds at a time; with less memory it is content with fewer


def make_room(need: int, device: str, keep: int = KEEP) -> None:
    """Let go of the models that were used longest ago until no more than `keep` are loaded and `need` bytes are free."""
    from wpn_bench.engine.budget import free_memory, release

    while len(_LOADED) > keep:
        _LOADED.popitem(last=False)
    while _LOADED and need > SPARE * free_memory(device.partition(":")[0]):
        _LOADED.popitem(last=False)
        release()


def weights_bytes(path: Path, dtype: str) -> int:
    """What the weights in `path` take once loaded in `dtype`; of pickled ones, which do not say, an upper bound."""
    import torch

    size = torch.finfo(getattr(torch, dtype)).bits // 8
    return size * (count_parameters(path) or sum(p.stat().st_size for p in path.glob("*.bin")) // 2)


def working_memory(config: Any, dtype: str) -> int:
    """Bytes that measuring takes beside the weights of a model with this configuration: what a pass computes, and the
    keys and values of its tokens."""
    import torch

    from wpn_bench.engine.likelihood import HEAD_ROWS

    text = config.get_text_config()
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    layers, width = int(getattr(text, "num_hidden_layers", 12)), int(getattr(text, "hidden_size", 768))
    tokens = min(WORKING_TOKENS, context_of(config))
    # As `Budget.measured`; the logits of the tokens that are read are float32, twice while a token is chosen.
    return tokens * size * width * (12 + 2 * layers) + 8 * HEAD_ROWS * int(getattr(text, "vocab_size", 50_000))


# --- loading ---------------------------------------------------------------------------------------------------------


def load(
    path: Path, device: str = "cpu", dtype: str = "float32", offload: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode and its tokenizer. The two used last stay in memory if both fit, else the last. Do not
    train what it returns."""
    key = (str(path), signature(path), device, dtype, offload)  # other weights in the same place are another model
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

    from wpn_bench.engine.budget import ran_out_of_memory

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
        if ran_out_of_memory(e) or "Cannot allocate memory" in str(e):  # the latter where a file cannot be mapped
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

    from wpn_bench.engine.budget import free_memory

    if offload == "none":
        return {}
    config = AutoConfig.from_pretrained(path)
    need, working = weights_bytes(path, dtype), working_memory(config, dtype)
    kind = device.partition(":")[0]
    here = int(SPARE * free_memory(kind)) - working
    main = here if kind == "cpu" else int(SPARE * free_memory("cpu"))
    files = sum(file.stat().st_size for file in path.iterdir() if file.suffix in _WEIGHTS)
    main = int(min(main, SPARE * (free_of_shell() - files) - working))
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
    return {"trust_remote_code": consent.to_code(), "use_safetensors": safe, "weights_only": True}


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token (end-of-text where it has none of its own)."""
    from transformers import AutoTokenizer

    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=consent.to_code())
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
    return context_of(model.config, default)


def context_of(config: Any, default: int = 2048) -> int:
    """How many tokens a model with this configuration can attend to."""
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        value = getattr(config, name, None)
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

    config = AutoConfig.from_pretrained(path, trust_remote_code=consent.to_code()).get_text_config()
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
